"""A daemon's life: from a parsed command line to an exit code.

0 after SIGTERM or SIGINT, or when there is nothing left to serve; 1 after one line that says what could not be worked
through. Readiness is told to whoever asked: the log, --ready-fd, systemd (sd_notify(3)).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import traceback
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from tailsrv.kit import logs
from tailsrv.kit.access import AllowList
from tailsrv.kit.errors import FatalError, UsageError, reason
from tailsrv.kit.logs import Repeated
from tailsrv.kit.measures import Measured
from tailsrv.kit.reactor import Reactor
from tailsrv.kit.shortage import advice, hold_descriptors, is_shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.kit.logs import Log
    from tailsrv.kit.options import CommonOptions
    from tailsrv.kit.reactor import Timer


READINESS_SECONDS: Final = 10.0
"""How often systemd is asked for more time while a start takes long,"""
EXTENSION_SECONDS: Final = 60.0
"""and how much more: EXTEND_TIMEOUT_USEC of sd_notify(3)."""


class Server(Measured, Protocol):
    """What a daemon is made of. Any method may raise `FatalError`, and so may whatever it does in the loop."""

    addresses: dict[str, tuple[str, ...]]
    """Where it listens, by role, once bound, in the form that options take."""

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen and open files. Calls ``ready()`` once it serves: now or, when that takes long, later in the loop."""

    def stop(self) -> None:
        """Finish what is promised, then stop the loop: SIGTERM or SIGINT came."""

    def close(self) -> None:
        """Give everything back. Also called when `bind` failed half-way."""


def run_daemon(name: str, options: CommonOptions, make: Callable[[Reactor, Log], Server]) -> int:
    """Run a server in a loop of its own until it stops; the process's exit code. Raises `UsageError` alone."""
    log = logs.configure(name, options.log_level, options.log_format)
    if options.ready_fd is not None:
        _check_descriptor(options.ready_fd)
    raise_descriptor_limit()
    try:
        return _serve(options, make, log)
    except UsageError:
        raise
    except FatalError as error:
        log.error("failed", error=str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        facts = {"advice": advice(error)} if is_shortage(error) else {}
        log.error("failed", error=f"{where}{reason(error)}", at=_where(error), **facts)
    except Exception as error:  # noqa: BLE001 - the outermost frame: a bug ends the daemon with one line, like all else
        log.error("failed", error=repr(error), at=_where(error), advice="this is a bug; please report this line")
    return 1


def _serve(options: CommonOptions, make: Callable[[Reactor, Log], Server], log: Log) -> int:
    hold_descriptors()
    notifier = Notifier()
    reactor = Reactor()
    log_contained(reactor, log)
    server = make(reactor, log)
    startup = _Startup(reactor, notifier)
    endpoint = None

    def stop() -> None:
        notifier.send("STOPPING=1")
        server.stop()

    def ready() -> None:
        startup.end()
        announce(server.addresses, options.ready_fd, log)
        notifier.send("READY=1")

    for signum in (signal.SIGTERM, signal.SIGINT):
        reactor.on_signal(signum, stop)
    try:
        if options.metrics is not None:
            from tailsrv.kit.metrics import MetricsEndpoint  # noqa: PLC0415 - see its docstring

            endpoint = MetricsEndpoint(reactor, options.metrics, AllowList(options.allow), server, log)
            log.info("serving metrics", addresses=endpoint.addresses)
        server.bind(ready)
        _feed_watchdog(reactor, notifier)
        reactor.run()
    finally:
        server.close()
        if endpoint is not None:
            endpoint.close()
        reactor.close()
    log.info("stopped")
    return 0


def _where(error: BaseException) -> str:
    """Where in the code it happened, innermost first: enough for a report, and it fits a line."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))


# --- readiness


def announce(addresses: dict[str, tuple[str, ...]], ready_fd: int | None, log: Log) -> None:
    """Say that the daemon listens, and where: all addresses, and those of each role."""
    listed = [address for of_role in addresses.values() for address in of_role]
    log.info("listening", addresses=listed)
    if ready_fd is not None:
        try:
            os.write(ready_fd, msgspec.json.encode({"addresses": listed, **addresses}) + b"\n")
            os.close(ready_fd)
        except OSError as error:
            log.warning("nobody reads --ready-fd", error=reason(error))


class Notifier:
    """Tells systemd, if it started us; see sd_notify(3).

    The socket is opened at the start: later, descriptors may be short.
    """

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def send(self, state: str) -> None:
        """Say `state`, as VARIABLE=VALUE. Nothing happens where nobody listens, or takes it now."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(state.encode(), self._address)


class _Startup:
    """Asks systemd for more time until the daemon is ready: recovery of a large file may take longer than it waits."""

    def __init__(self, reactor: Reactor, notifier: Notifier) -> None:
        self._reactor = reactor
        self._notifier = notifier
        self._timer: Timer | None = reactor.call_later(READINESS_SECONDS, self._extend)

    def _extend(self) -> None:
        self._notifier.send(f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1e6:.0f}")
        self._timer = self._reactor.call_later(READINESS_SECONDS, self._extend)

    def end(self) -> None:
        """It is ready."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def log_contained(reactor: Reactor, log: Log) -> None:
    """Have every error that `reactor` contains logged with its place."""
    contained = Repeated(log.error, "unexpected error")
    reactor.on_contained = lambda error: contained(
        error=repr(error), at=_where(error), advice="this is a bug; please report this line; one peer was closed"
    )


def _feed_watchdog(reactor: Reactor, notifier: Notifier) -> None:
    """Tell systemd twice in each of its intervals that the loop turns, where it asks to be told."""
    interval, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not interval.isdigit() or (pid and pid != str(os.getpid())):
        return
    seconds = int(interval) / 2e6

    def feed() -> None:
        notifier.send("WATCHDOG=1")
        reactor.call_later(seconds, feed)

    feed()


def _check_descriptor(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError as error:
        raise UsageError(f"--ready-fd {fd}: {reason(error)}; it has to be open for writing") from None


def raise_descriptor_limit() -> None:
    """As many descriptors as we may have: the soft limit is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
