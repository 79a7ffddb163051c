"""Several processes that serve one file on the same addresses, and the one that looks after them.

Workers share nothing but the file. The supervisor binds every worker's sockets before there is a worker (SO_REUSEPORT:
the kernel spreads connections among them; a Unix socket, or one that was handed over, is shared) and keeps them: the
connections that wait for a worker that has died wait for its successor. It accepts nothing itself.

A worker and the supervisor are joined by a pair of sockets. Its end is how a worker learns that the supervisor has
died, and the other way round. What they say to each other, and the other side of it, is in `worker`.

    exit code 0, told to stop or after `gone`   it has done its work
    a `failed` report                           at the start, from a worker that has served, or with no other one left:
                                                so would every other worker; the supervisor fails with its words
    anything else                               it died; another one is started, later and later if that repeats

A worker that is started again and fails before it serves, for a shortage or because FILE can't be opened any more, does
not take with it those that still serve. A shortage of the supervisor's own, in starting one, is waited out.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

import msgspec

from tailsrv.worker import REPORT_BYTES, SIGNALS, Order, Report, decode, work
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import BACKLOG, Listener, listeners_for
from tailsrv_runtime.metrics import UNEXPECTED_ERRORS, Metric, unexpected_errors
from tailsrv_runtime.reactor import READ
from tailsrv_runtime.shortage import Retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv.options import Options
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

START_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 1.0
"""How long the supervisor waits for what workers have counted; a stopped one is answered for by its last answer."""

BACK_OFF_SECONDS: Final = (0.1, 30.0)
"""Between a worker's death and its successor: at first, at most. It doubles while they die young."""
YOUNG_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 2.0
"""Beyond --drain, before a worker that does not end is killed."""

GREATEST: Final = frozenset({"tailsrv_file_bytes", "tailsrv_committed_bytes", "tailsrv_slowest_lag_bytes"})
"""Measures that every worker takes of the same thing; all others add up."""


class Worker(msgspec.Struct, eq=False):
    """A worker as the supervisor knows it."""

    listeners: list[Listener]
    """Its own, which outlive it."""
    pid: int = 0
    """0 while there is no process."""
    channel: socket.socket | None = None
    started: float = 0.0
    back_off: float = BACK_OFF_SECONDS[0]
    last: Report = Report("measured")
    serves: bool = False
    """Whether it has said that it is ready."""
    asked: bool = False
    """Whether it owes us an answer."""
    starting: Retried | None = None
    """How it is started again."""
    before: dict[str, float] = {}
    """What its predecessors have counted."""

    def tell(self, order: Order) -> None:
        """Say something, without waiting; who is dying, or has read nothing for long, need not get it."""
        if self.channel is not None:
            with contextlib.suppress(OSError):
                self.channel.send(order.value, socket.MSG_DONTWAIT)


class Supervisor:
    """Starts workers, starts them again, adds up what they count. A `Server` for `run_daemon`."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._listeners: list[Listener] = []
        self._workers: list[Worker] = []
        self._is_ready = False
        """Whether all workers have served once."""
        self._stopping = False
        """Whether nobody is served any more: its end was asked for, or the file has gone."""
        self._stops = 0
        """How often its end was asked for."""

    # --- a server's four verbs

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen, and start the workers; returns when all of them serve."""
        named = bool(self._options.listen)
        self._listeners = listeners_for(self._options.listen, reuse_port=True)
        self.addresses = {"broadcast": tuple(listener.address for listener in self._listeners)}
        self._workers = [Worker(self._listeners)]
        for _ in range(1, self._options.workers):
            self._workers.append(Worker([_sibling(each) if named else each for each in self._listeners]))
        gc.freeze()  # what stands now is shared with the workers, as long as nobody writes to it
        for worker in self._workers:
            self._start(worker)
        for worker in self._workers:
            self._await_ready(worker)
        self._is_ready = True
        self._reactor.on_signal(signal.SIGUSR1, lambda: self._tell_all(Order.DESCRIBE))
        ready()

    def stop(self) -> None:
        """Let the workers finish; the second time, end."""
        self._stops += 1
        self._stop_listening()
        self._tell_all(Order.STOP if self._stops == 1 else Order.END)
        self._kill_later(self._options.drain if self._stops == 1 else 0.0)
        self._end_if_all_have()

    def close(self) -> None:
        """End what is left of the workers, and stop listening."""
        self._stop_listening()
        for worker in self._workers:
            if worker.starting is not None:
                worker.starting.cancel()
        self._tell_all(Order.END)
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            if worker.channel is not None:
                # The channel ends when the worker does.
                with contextlib.suppress(FatalError):  # it fails as another one did, or too late to matter
                    while _readable([worker.channel], deadline) and self._receive(worker):
                        pass
        self._kill_all()
        for worker in self._workers:
            self._bury(worker)

    def _stop_listening(self) -> None:
        self._stopping = True
        for listener in (*self._listeners, *(each for worker in self._workers for each in worker.listeners)):
            listener.close()

    # --- workers

    def _tell_all(self, order: Order) -> None:
        for worker in self._workers:
            worker.tell(order)

    def _start(self, worker: Worker) -> None:
        """Raises `OSError` when something is short; nothing has been started then."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # A signal between fork and the worker's own handlers would be lost.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                pid = os.fork()
                if not pid:
                    first = worker is self._workers[0]
                    sockets = [listener.socket for listener in worker.listeners]
                    work(theirs, sockets, self._options, self._log, first=first)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        worker.pid, worker.channel, worker.started = pid, ours, time.monotonic()
        worker.serves = worker.asked = False
        try:
            self._reactor.register(ours.fileno(), READ, functools.partial(self._on_channel, worker))
        except OSError:
            os.kill(pid, signal.SIGKILL)
            self._bury(worker)
            raise

    def _start_again(self, worker: Worker) -> None:
        if self._stopping:
            return
        if worker.starting is None:
            start = functools.partial(self._start_unless_stopping, worker)
            worker.starting = Retried(self._reactor, self._log, "starting a worker", start)
        worker.starting()

    def _start_unless_stopping(self, worker: Worker) -> None:
        if not self._stopping:
            self._start(worker)

    def _await_ready(self, worker: Worker) -> None:
        deadline = time.monotonic() + START_SECONDS
        while worker.channel is not None and _readable([worker.channel], deadline) and self._receive(worker):
            if worker.serves:
                return
        raise FatalError("a worker did not start; the log has its last words")

    def _on_channel(self, worker: Worker, _mask: int) -> None:
        if self._receive(worker):
            return
        status = self._bury(worker)
        if self._stopping:
            self._end_if_all_have()
            return
        lived = time.monotonic() - worker.started
        first, most = BACK_OFF_SECONDS
        worker.back_off = first if lived > YOUNG_SECONDS else min(most, worker.back_off * 2)
        self._log.error(
            "worker died", pid=worker.pid, status=status, lived_seconds=round(lived, 3), again_in=worker.back_off
        )
        worker.pid = 0
        self._reactor.call_later(worker.back_off, functools.partial(self._start_again, worker))

    def _receive(self, worker: Worker) -> bool:
        """Take one report; False when the channel has ended."""
        if worker.channel is None:
            return False
        try:
            data = worker.channel.recv(REPORT_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not data:
            return False
        report = decode(data)
        if report.event in {"failed", "short"}:
            self._on_failure(worker, report)
        elif report.event == "ready":
            worker.serves = True
        elif report.event == "gone":
            self._stop_listening()
            self._kill_later(self._options.drain)
        elif report.event == "measured":
            worker.last, worker.asked = report, False
        return True

    def _on_failure(self, worker: Worker, report: Report) -> None:
        """A worker is about to end for a reason that it knows. Raises `FatalError` if it is everybody's."""
        others_serve = any(other.serves for other in self._workers if other is not worker)
        is_start = not self._is_ready
        if is_start or (report.event == "failed" and (worker.serves or not others_serve)):
            raise FatalError(report.text or "a worker failed")
        self._log.error("worker failed", pid=worker.pid, error=report.text)

    def _bury(self, worker: Worker) -> str:
        """Reap it, and keep what it has counted; how it ended."""
        if worker.channel is None:
            return ""
        self._reactor.unregister(worker.channel.fileno())
        worker.channel.close()
        worker.channel = None
        worker.serves = worker.asked = False
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        for measure in worker.last.metrics:
            if measure.kind == "counter":
                worker.before[measure.name] = worker.before.get(measure.name, 0.0) + measure.value
        worker.last = Report("measured")
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _kill_later(self, seconds: float) -> None:
        """Wait no longer than that, and a moment, for workers that should end."""
        self._reactor.call_later(seconds + GRACE_SECONDS, self._kill_all)

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.channel is not None:
                os.kill(worker.pid, signal.SIGKILL)

    def _end_if_all_have(self) -> None:
        if all(worker.channel is None for worker in self._workers):
            self._reactor.stop()

    # --- what can be asked

    def _ask(self) -> None:
        """Have every worker say how it is. One that does not answer in time is not waited for until it has."""
        waiting = {}
        for worker in self._workers:
            if worker.channel is not None and not worker.asked:
                worker.asked = True
                worker.tell(Order.MEASURE)
                waiting[worker.channel] = worker
        deadline = time.monotonic() + ANSWER_SECONDS
        while waiting:
            ready = _readable(list(waiting), deadline)
            if not ready:
                return
            for channel in ready:
                # One that has ended is buried in the loop.
                if not self._receive(waiting[channel]) or not waiting[channel].asked:
                    del waiting[channel]

    def metrics(self) -> Iterator[Metric]:
        """See `Instrumented`: all workers' values together."""
        self._ask()
        alive = sum(worker.channel is not None for worker in self._workers)
        yield Metric("gauge", "tailsrv_workers", "Processes that serve.", alive)
        totals = {UNEXPECTED_ERRORS: unexpected_errors(self._reactor)}
        for worker in self._workers:
            for measure in worker.last.metrics:
                value = measure.value + worker.before.get(measure.name, 0.0)
                if measure.name in totals:
                    other = totals[measure.name].value
                    value = max(value, other) if measure.name in GREATEST else value + other
                totals[measure.name] = msgspec.structs.replace(measure, value=value)
        yield from totals.values()

    def unhealthy(self) -> str | None:
        """See `Instrumented`."""
        if self._stopping:
            return "stopping"
        self._ask()
        if not any(worker.channel is not None for worker in self._workers):
            paused = (worker.starting.paused for worker in self._workers if worker.starting is not None)
            return next(filter(None, paused), "no worker runs")
        return next((worker.last.text for worker in self._workers if worker.last.text is not None), None)


def _readable(channels: list[socket.socket], deadline: float) -> list[socket.socket]:
    """Those that can be read, once there is one; none when it is `deadline`, in seconds of the monotonic clock."""
    with selectors.PollSelector() as selector:  # poll(2): select(2) knows no descriptor beyond 1023
        for channel in channels:
            selector.register(channel, selectors.EVENT_READ, channel)
        return [key.data for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]


def _sibling(listener: Listener) -> Listener:
    """Another listener at the same address; a Unix socket can't have one, and is shared."""
    sock = listener.socket
    if sock.family == socket.AF_UNIX:
        return listener
    other = socket.socket(sock.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        other.bind(sock.getsockname())
        other.listen(BACKLOG)
    except OSError as error:
        other.close()
        raise FatalError(f"cannot listen on {listener.address} once for each worker: {reason(error)}") from None
    return Listener(other)
