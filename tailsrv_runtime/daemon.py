"""A daemon's lifecycle: from a parsed command line to an exit code.

The exit code is 0 after SIGTERM or SIGINT, or when there is nothing left to serve, and 1 after a failure, which is one
line in the log. A daemon reports its readiness to the log, to --ready-fd and to systemd (sd_notify(3)).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from tailsrv_formats.errors import UsageError, reason
from tailsrv_runtime import logs, standard_error
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.errors import FatalError, location
from tailsrv_runtime.line_writer import LineWriter
from tailsrv_runtime.logs import Repeated
from tailsrv_runtime.metrics import Instrumented
from tailsrv_runtime.notifier import Notifier
from tailsrv_runtime.reactor import Reactor
from tailsrv_runtime.shortage import advice, hold_descriptors, is_shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.options import CommonOptions
    from tailsrv_runtime.reactor import Timer


READINESS_SECONDS: Final = 10.0
"""How often the daemon asks systemd for more time while its start takes long."""

EXTENSION_SECONDS: Final = 60.0
"""How much time it asks for: EXTEND_TIMEOUT_USEC of sd_notify(3)."""

WATCHDOG_DIGITS: Final = 18
"""Most digits of WATCHDOG_USEC. systemd never sets a longer number of microseconds."""


class Server(Instrumented, Protocol):
    """The part of a daemon that serves. Any method may raise `FatalError`, and so may its handlers in the loop."""

    addresses: dict[str, tuple[str, ...]]
    """The bound addresses by role, in the form that options take."""

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen and open files. Calls ``ready()`` once it serves: now or, when that takes long, later in the loop."""

    def stop(self) -> None:
        """SIGTERM or SIGINT was received: finish the work that was promised to peers, then stop the loop."""

    def close(self) -> None:
        """Release all resources. Also called when `bind` failed half-way."""


def run_daemon(name: str, options: CommonOptions, make: Callable[[Reactor, Log], Server]) -> int:
    """Run a server in a loop of its own until it stops; return the exit code. Raises only `UsageError`."""
    log = logs.configure(name, options.log_level, options.log_format)
    if options.ready_fd is not None:
        check_descriptor(options.ready_fd)
    raise_descriptor_limit()
    try:
        return _serve(options, make, log)
    except UsageError:
        raise
    except FatalError as error:
        log.error("failed", error=str(error), **_advice(error.__context__))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        log.error("failed", error=f"{where}{reason(error)}", at=location(error), **_advice(error))
    except Exception as error:  # noqa: BLE001 - the outermost frame: a bug, too, is one line in the log
        log.error("failed", error=repr(error), at=location(error), advice="this is a bug; please report this line")
    return 1


def _advice(error: BaseException | None) -> dict[str, str]:
    """What to do about a shortage, if that is what the error is."""
    return {"advice": advice(error)} if isinstance(error, OSError) and is_shortage(error) else {}


def _serve(options: CommonOptions, make: Callable[[Reactor, Log], Server], log: Log) -> int:
    hold_descriptors()
    with contextlib.ExitStack() as opened:
        reactor = Reactor()
        opened.callback(reactor.close)
        standard_error.writer().attach(reactor)
        opened.callback(standard_error.writer().detach)
        notifier = Notifier(reactor)
        opened.callback(notifier.close)
        log_contained(reactor, log)

        def stop() -> None:
            notifier.send("STOPPING=1", until_taken=True)
            server.stop()

        # Before the server is made, which may bind and read files at once: the loop calls `stop` when there is one.
        for signum in (signal.SIGTERM, signal.SIGINT):
            reactor.on_signal(signum, stop)
        server = make(reactor, log)
        opened.callback(server.close)
        startup = Startup(reactor, notifier)

        def ready() -> None:
            startup.end()
            announce(server.addresses, options.ready_fd, log)
            notifier.send("READY=1", until_taken=True)

        if options.metrics is not None:
            from tailsrv_runtime.metrics_endpoint import MetricsEndpoint  # noqa: PLC0415 - see its docstring

            endpoint = MetricsEndpoint(reactor, options.metrics, AllowList(options.allow), server, log)
            opened.callback(endpoint.close)
            log.info("serving metrics", addresses=endpoint.addresses)
        server.bind(ready)
        feed_watchdog(reactor, notifier)
        reactor.run()
    log.info("stopped")
    return 0


# --- readiness


def announce(addresses: dict[str, tuple[str, ...]], ready_fd: int | None, log: Log) -> None:
    """Report readiness to the log and to `--ready-fd`: all addresses, and those of each role."""
    listed = [address for of_role in addresses.values() for address in of_role]
    log.info("listening", addresses=listed, **addresses)
    if ready_fd is not None:
        problem = write_ready(ready_fd, {"addresses": listed, **addresses})
        if problem is not None:
            log.warning("--ready-fd has no reader", fd=ready_fd, error=problem)


def write_ready(ready_fd: int, message: object) -> str | None:
    """Write the line of `--ready-fd` and close it, without waiting. Returns the error, or None."""
    writer = LineWriter(ready_fd)
    writer.write(f"{_to_json(message)}\n")
    problem = None if writer.flush() else "the descriptor is closed, or full"
    writer.close()
    with contextlib.suppress(OSError):
        os.close(ready_fd)
    standard_error.keep_standard_descriptors()  # the descriptor may have been one of these
    return problem


def _to_json(message: object) -> str:
    try:
        return msgspec.json.encode(message).decode()
    except UnicodeEncodeError:  # the path of a Unix socket may be any bytes
        import json  # noqa: PLC0415 - hardly ever needed

        return json.dumps(message)


class Startup:
    """Asks systemd for more time until the daemon is ready: recovery of a large file may take longer than its limit."""

    def __init__(self, reactor: Reactor, notifier: Notifier) -> None:
        self._reactor = reactor
        self._notifier = notifier
        self._timer: Timer | None = reactor.call_later(READINESS_SECONDS, self._extend)

    def _extend(self) -> None:
        self._notifier.send(f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1e6:.0f}")
        self._timer = self._reactor.call_later(READINESS_SECONDS, self._extend)

    def end(self) -> None:
        """The daemon is ready: ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def log_contained(reactor: Reactor, log: Log) -> None:
    """Log every error that `reactor` contains: a shortage with the advice, a bug with its place in the code."""
    unexpected = Repeated(log.error, "unexpected error")
    dropped = Repeated(log.warning, "connection dropped")

    def contained(error: Exception) -> None:
        if isinstance(error, OSError) and is_shortage(error):
            dropped(error=reason(error), advice=advice(error))
        else:
            where = location(error)
            unexpected(
                error=repr(error), at=where, advice="this is a bug; please report this line; one peer was closed"
            )

    reactor.on_contained = contained


def feed_watchdog(reactor: Reactor, notifier: Notifier) -> None:
    """Send WATCHDOG=1 to systemd twice per interval, if it asks for that: the loop runs."""
    interval, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (interval.isascii() and interval.isdigit() and len(interval) <= WATCHDOG_DIGITS and int(interval)):
        return
    if pid and pid != str(os.getpid()):
        return
    seconds = int(interval) / 2e6

    def feed() -> None:
        notifier.send("WATCHDOG=1")
        reactor.call_later(seconds, feed)

    feed()


def check_descriptor(fd: int) -> None:
    """Raises `UsageError` unless the descriptor of `--ready-fd` is open for writing."""
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise UsageError(f"--ready-fd {fd}: {reason(error)}; open it for writing") from None
    if mode == os.O_RDONLY:
        raise UsageError(f"--ready-fd {fd}: it is open for reading; open it for writing")


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard one: the soft one is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # fs.nr_open may be lower by now; the limit stays as it is then
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
