"""One of several processes that serve a file: a broadcaster on sockets that its supervisor has bound.

Orders come and reports go through one socket, a packet each. When it ends, the supervisor has died, and so do we.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from tailsrv.server import Broadcaster
from tailsrv_formats.errors import reason
from tailsrv_runtime import standard_error
from tailsrv_runtime.daemon import log_contained
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import Listener
from tailsrv_runtime.metrics import Metric  # noqa: TC001 - msgspec reads the annotation
from tailsrv_runtime.reactor import READ, Reactor
from tailsrv_runtime.shortage import advice, is_shortage, spare_descriptors

if TYPE_CHECKING:
    from tailsrv.options import Options
    from tailsrv_runtime.logs import Log

REPORT_BYTES: Final = 1 << 16
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Blocked from before the fork until the worker's own handlers are there: in between, one would be lost."""


class Order(enum.Enum):
    """What the supervisor may say."""

    MEASURE = b"measure"
    DESCRIBE = b"describe"
    STOP = b"stop"
    END = b"end"


class Report(msgspec.Struct, frozen=True):
    """What a worker may say."""

    event: str
    """ready, gone, failed, short or measured."""
    text: str | None = None
    """Why it failed, what was short, or why it is unhealthy."""
    metrics: list[Metric] = []


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Report).decode


class _Quiet:
    """The log of those who would only repeat what the first worker says of the file."""

    def debug(self, event: str, **facts: object) -> None:
        """Nothing."""

    info = warning = error = debug


def work(channel: socket.socket, sockets: list[socket.socket], options: Options, log: Log, *, first: bool) -> NoReturn:
    """Be a worker, from fork to exit."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        logged = standard_error.writer().descriptors()
        with spare_descriptors():  # what is held back is a copy of the supervisor's; listing takes a descriptor
            _close_all_but({0, 1, 2, *logged, channel.fileno(), *(sock.fileno() for sock in sockets)})
        code = _serve(channel, sockets, options, log, first=first)
    except FatalError as error:
        _say(channel, Report("failed", str(error)))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        text = f"{where}{reason(error)}"
        report = Report("short", f"{text}; {advice(error)}") if is_shortage(error) else Report("failed", text)
        _say(channel, report)
    except BaseException as error:  # noqa: BLE001 - a bug ends this worker with a line; the next one may fare better
        log.error("failed", error=repr(error), worker=os.getpid(), advice="this is a bug; please report this line")
    finally:
        os._exit(code)  # what the supervisor had on its stack is not ours to unwind


def _say(channel: socket.socket, report: Report) -> None:
    """Send a report. A supervisor that has died need not get it; that its channel is full is no reason to wait."""
    if report.text is not None:  # which may name a file whose name is no UTF-8
        text = report.text.encode("utf-8", "backslashreplace").decode()
        report = msgspec.structs.replace(report, text=text)
    with contextlib.suppress(OSError):
        channel.send(encode(report), socket.MSG_DONTWAIT)


def _close_all_but(kept: set[int]) -> None:
    """The supervisor's own descriptors are not for us: its epoll, its metrics, other workers' channels."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))


def _serve(channel: socket.socket, sockets: list[socket.socket], options: Options, log: Log, *, first: bool) -> int:
    reactor = Reactor()
    standard_error.writer().attach(reactor)
    log_contained(reactor, log)
    worker = _Worker(reactor, channel, options, log, None if first else _Quiet())
    for signum in (signal.SIGTERM, signal.SIGINT):
        reactor.on_signal(signum, worker.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        worker.server.serve([Listener(sock) for sock in sockets], shared=True)
        worker.say(Report("ready"))
        reactor.run()
    finally:
        worker.server.close()
        standard_error.writer().detach()
    return 0


class _Worker:
    """A broadcaster, and the channel to the supervisor."""

    def __init__(
        self, reactor: Reactor, channel: socket.socket, options: Options, log: Log, stream_log: Log | None
    ) -> None:
        self.server = Broadcaster(reactor, options, log, stream_log=stream_log, ending=self._gone)
        self._reactor = reactor
        self._channel = channel
        reactor.register(channel.fileno(), READ, self._on_order)

    def say(self, report: Report) -> None:
        _say(self._channel, report)

    def stop(self) -> None:
        # A terminal, or systemd, signals all processes of a group, and the supervisor tells us as well: that is once.
        if not self.server.stopping:
            self.server.stop()

    def _gone(self) -> None:
        self.say(Report("gone"))

    def _on_order(self, _mask: int) -> None:
        try:
            order = self._channel.recv(REPORT_BYTES)
        except ConnectionError:
            order = b""
        if order == Order.MEASURE.value:
            try:
                self.say(Report("measured", self.server.unhealthy(), list(self.server.metrics())))
            except Exception as error:  # noqa: BLE001 - reported; a question costs no client its connection
                self._reactor.contain(error, lambda: None)
        elif order == Order.DESCRIBE.value:
            self.server.describe()
        elif order == Order.END.value:
            self._reactor.stop()
        elif order == Order.STOP.value:
            self.stop()
        else:  # the supervisor has died
            self._reactor.unregister(self._channel.fileno())
            self.stop()
