"""A daemon's life: from a parsed command line to an exit code.

0 after SIGTERM or SIGINT, or when there is nothing left to serve; 1 after one line that says what could not be worked
through. Readiness is told to whoever asked: the log, --ready-fd, systemd (sd_notify(3)).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import traceback
from typing import TYPE_CHECKING, Protocol

import msgspec

from tailsrv.kit import logs
from tailsrv.kit.access import AllowList
from tailsrv.kit.errors import FatalError, UsageError, reason
from tailsrv.kit.measures import Measured
from tailsrv.kit.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.kit.logs import Log
    from tailsrv.kit.options import CommonOptions


class Server(Measured, Protocol):
    """What a daemon is made of. Any method may raise `FatalError`, and so may whatever it does in the loop."""

    addresses: tuple[str, ...]
    """Where it listens, once bound, in the form that options take."""

    def bind(self) -> None:
        """Open files and listen: afterwards it serves as soon as the loop runs."""

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
        log.error("failed", error=f"{where}{reason(error)}", at=_where(error))
    except Exception as error:  # noqa: BLE001 - the outermost frame: a bug ends the daemon with one line, like all else
        log.error("failed", error=repr(error), at=_where(error), advice="this is a bug; please report this line")
    return 1


def _serve(options: CommonOptions, make: Callable[[Reactor, Log], Server], log: Log) -> int:
    reactor = Reactor()
    server = make(reactor, log)
    for signum in (signal.SIGTERM, signal.SIGINT):
        reactor.on_signal(signum, server.stop)
    try:
        server.bind()
        if options.metrics is not None:
            from tailsrv.kit.metrics import MetricsEndpoint  # noqa: PLC0415 - see its docstring

            endpoint = MetricsEndpoint(reactor, options.metrics, AllowList(options.allow), server, log)
            log.info("serving metrics", addresses=endpoint.addresses)
        announce(server.addresses, options.ready_fd, log)
        _feed_watchdog(reactor)
        reactor.run()
    finally:
        server.close()
        reactor.close()
    log.info("stopped")
    return 0


def _where(error: BaseException) -> str:
    """Where in the code it happened, innermost first: enough for a report, and it fits a line."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))


# --- readiness


def announce(addresses: tuple[str, ...], ready_fd: int | None, log: Log) -> None:
    """Say that the daemon listens, and where."""
    log.info("listening", addresses=addresses)
    if ready_fd is not None:
        try:
            os.write(ready_fd, msgspec.json.encode({"addresses": addresses}) + b"\n")
            os.close(ready_fd)
        except OSError as error:
            log.warning("nobody reads --ready-fd", error=reason(error))
    notify("READY=1")


def notify(state: str) -> None:
    """Tell systemd, if it started us; see sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)
            sock.send(state.encode())
        except OSError:
            return  # who does not listen can't be told


def _feed_watchdog(reactor: Reactor) -> None:
    """Tell systemd twice in each of its intervals that the loop turns, where it asks to be told."""
    interval, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not interval.isdigit() or (pid and pid != str(os.getpid())):
        return
    seconds = int(interval) / 2e6

    def feed() -> None:
        notify("WATCHDOG=1")
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
