"""A worker: one of several processes that serve the same file.

The supervisor forks it and passes it bound sockets and a channel. It runs a broadcaster on these sockets and carries
out the supervisor's commands. When the channel ends, the supervisor has died, and the worker drains and ends as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from tailsrv.server import Broadcaster
from tailsrv.worker_messages import MESSAGE_BYTES, Command, Event, WorkerReport, encode
from tailsrv_formats.errors import reason
from tailsrv_runtime import standard_error
from tailsrv_runtime.daemon import log_contained
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import Listener
from tailsrv_runtime.reactor import READ, Reactor
from tailsrv_runtime.shortage import advice, is_shortage, spare_descriptors

if TYPE_CHECKING:
    from tailsrv.options import Options
    from tailsrv_runtime.logs import Log

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Blocked from before the fork until the worker has set its own handlers: one in between would be lost."""


class _SilentLog:
    """The stream's log in all workers but the first: each event of the file is logged once."""

    def debug(self, event: str, **facts: object) -> None:
        """Log nothing."""

    info = warning = error = debug


def run_worker(
    channel: socket.socket, sockets: list[socket.socket], options: Options, log: Log, *, first: bool
) -> NoReturn:
    """Run a worker in a process that was just forked, and end the process. `first`: it logs the events of the file."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        logged = standard_error.writer().descriptors()
        # The supervisor's reserve was inherited. It is closed here: listing the descriptors needs one.
        with spare_descriptors():
            _close_all_but({0, 1, 2, *logged, channel.fileno(), *(sock.fileno() for sock in sockets)})
        code = _serve(channel, sockets, options, log, first=first)
    except FatalError as error:
        _send(channel, WorkerReport(Event.FAILED, str(error)))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        text = f"{where}{reason(error)}"
        if is_shortage(error):
            _send(channel, WorkerReport(Event.SHORTAGE, f"{text}; {advice(error)}"))
        else:
            _send(channel, WorkerReport(Event.FAILED, text))
    except BaseException as error:  # noqa: BLE001 - logged here: the supervisor starts another worker
        log.error("failed", error=repr(error), worker=os.getpid(), advice="this is a bug; please report this line")
    finally:
        os._exit(code)  # without unwinding the stack, which is the supervisor's


def _send(channel: socket.socket, report: WorkerReport) -> None:
    """Send a report without waiting. It is lost if the channel is full or the supervisor has died."""
    if report.text is not None:  # it may contain the name of a file, which need not be UTF-8
        text = report.text.encode("utf-8", "backslashreplace").decode()
        report = msgspec.structs.replace(report, text=text)
    with contextlib.suppress(OSError):
        channel.send(encode(report), socket.MSG_DONTWAIT)


def _close_all_but(kept: set[int]) -> None:
    """Close the supervisor's other descriptors: its epoll, its metrics address, the channels of other workers."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
                os.close(int(name))


def _serve(channel: socket.socket, sockets: list[socket.socket], options: Options, log: Log, *, first: bool) -> int:
    reactor = Reactor()
    standard_error.writer().attach(reactor)
    log_contained(reactor, log)
    server = Broadcaster(
        reactor,
        options,
        log,
        stream_log=log if first else _SilentLog(),
        file_gone=functools.partial(_send, channel, WorkerReport(Event.FILE_GONE)),
    )
    commands = _CommandHandler(reactor, channel, server)
    for signum in (signal.SIGTERM, signal.SIGINT):
        reactor.on_signal(signum, commands.stop)
    try:
        server.serve([Listener(sock) for sock in sockets], shared=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `serve` has set the last handler, that of SIGUSR1
        _send(channel, WorkerReport(Event.READY))
        reactor.run()
    finally:
        server.close()
        standard_error.writer().detach()
    return 0


class _CommandHandler:
    """Carries out the commands that arrive on the channel."""

    def __init__(self, reactor: Reactor, channel: socket.socket, server: Broadcaster) -> None:
        self._reactor = reactor
        self._channel = channel
        self._server = server
        reactor.register(channel.fileno(), READ, self._on_command)

    def stop(self) -> None:
        """Begin the drain, once: a terminal and systemd signal the worker and the supervisor, which sends STOP, too."""
        if not self._server.is_stopping:
            self._server.stop()

    def _on_command(self, _mask: int) -> None:
        try:
            command = self._channel.recv(MESSAGE_BYTES)
        except ConnectionError:
            command = b""
        if command == Command.REPORT_METRICS.value:
            try:
                report = WorkerReport(Event.METRICS, self._server.unhealthy(), list(self._server.metrics()))
                _send(self._channel, report)
            except Exception as error:  # noqa: BLE001 - contained: no client is concerned
                self._reactor.contain(error, lambda: None)
        elif command == Command.LOG_CLIENTS.value:
            self._server.log_clients()
        elif command == Command.END.value:
            self._reactor.stop()
        elif command == Command.STOP.value:
            self.stop()
        else:  # the supervisor has died
            self._reactor.unregister(self._channel.fileno())
            self.stop()
