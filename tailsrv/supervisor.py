"""Several processes that serve one file on the same addresses, and the supervisor that starts them.

Workers share nothing but the file. The supervisor binds the sockets of each worker before it starts any (SO_REUSEPORT:
the kernel distributes connections among them; a Unix socket, or one that was handed over, is shared). It keeps them
open, so connections that the kernel has queued for a worker that dies are accepted by its successor. The supervisor
itself accepts no connections.

The supervisor sends commands to the workers, and receives their reports (worker_messages.py). A worker ends in one of
these ways:

| the worker                     | while                             | the supervisor                                  |
| ------------------------------ | --------------------------------- | ----------------------------------------------- |
| exits after STOP or FILE_GONE  | the daemon ends                   | ends after the last worker                      |
| reports FAILED or SHORTAGE     | the daemon starts                 | fails with the same error                       |
| reports FAILED                 | it serves, or no other one does   | fails with the same error: all would report it  |
| reports FAILED or SHORTAGE     | otherwise                         | logs the error, and starts another one as below |
| dies without a report          | the daemon serves                 | starts another one after `RESTART_SECONDS`, and |
|                                |                                   | later each time while workers die young         |

When the supervisor itself has no descriptors or memory to start a worker, it tries again until it succeeds (`Retried`).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

import msgspec

from tailsrv.worker_messages import Command, Event
from tailsrv.worker_process import WorkerProcess
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import BACKLOG, Listener, listeners_for
from tailsrv_runtime.metrics import UNEXPECTED_ERRORS, Metric, unexpected_errors
from tailsrv_runtime.reactor import READ
from tailsrv_runtime.shortage import Retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv.options import Options
    from tailsrv.worker_messages import WorkerReport
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

START_SECONDS: Final = 30.0
"""The time that a worker has to become ready when the daemon starts."""

ANSWER_SECONDS: Final = 1.0
"""The time that workers have to report their metrics. For one that does not, its last metrics are used."""

RESTART_SECONDS: Final = 0.1
MAX_RESTART_SECONDS: Final = 30.0
"""The shortest and longest time between a worker's death and the start of its successor."""

SHORT_LIFE_SECONDS: Final = 10.0
"""When a worker dies sooner than this after its start, the time until the next start doubles."""

GRACE_SECONDS: Final = 2.0
"""A worker that has not ended this long after --drain is killed."""

GREATEST: Final = frozenset({"tailsrv_file_bytes", "tailsrv_committed_bytes", "tailsrv_slowest_lag_bytes"})
"""Metrics whose value for the daemon is the greatest of the workers' values. All others are added up."""


class Slot:
    """The place of one worker: its listeners, which outlive its process, and the process while there is one."""

    def __init__(self, listeners: list[Listener], reactor: Reactor, log: Log, start: Callable[[Slot], None]) -> None:
        """``start(slot)`` starts a process, or raises `OSError` for a shortage."""
        self.listeners = listeners
        self.start = Retried(reactor, log, "starting a worker", functools.partial(start, self))
        self.process: WorkerProcess | None = None
        self.restart_seconds = RESTART_SECONDS
        """The time until the next start, if the process dies soon."""
        self.counters: dict[str, Metric] = {}
        """The counters of the processes that have ended."""

    def keep_counters(self, metrics: list[Metric]) -> None:
        """Add the last metrics of a process that has ended."""
        for metric in metrics:
            if metric.kind == "counter":
                _add(self.counters, metric)


class Supervisor:
    """Starts workers, restarts them, and adds up their metrics. A `Server` for `run_daemon`."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._slots: list[Slot] = []
        self._is_ready = False
        """Whether the start is complete: all workers have served."""
        self._is_stopping = False
        """Whether the daemon ends: `stop` was called, or the file is gone."""
        self._stops = 0
        """How often `stop` was called."""

    # --- a server's four verbs

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen, start the workers, and wait until all of them serve."""
        has_addresses = bool(self._options.listen)
        listeners = listeners_for(self._options.listen, reuse_port=True)
        self.addresses = {"broadcast": tuple(listener.address for listener in listeners)}
        self._slots.append(self._slot(listeners))
        for _ in range(1, self._options.workers):
            # Sockets that were handed over (LISTEN_FDS) are not bound again: all workers share them.
            self._slots.append(self._slot([_sibling(each) if has_addresses else each for each in listeners]))
        gc.freeze()  # the workers share the pages of all objects so far; a collection would write to them
        self._reactor.on_signal(signal.SIGUSR1, lambda: self._send_all(Command.LOG_CLIENTS))
        for slot in self._slots:
            self._start_process(slot)
        for slot in self._slots:
            self._await_ready(slot)
        self._is_ready = True
        ready()

    def stop(self) -> None:
        """Have all workers drain and end. A second call ends them at once."""
        self._stops += 1
        self._stop_listening()
        self._send_all(Command.STOP if self._stops == 1 else Command.END)
        self._kill_later(self._options.drain if self._stops == 1 else 0.0)
        self._stop_if_all_ended()

    def close(self) -> None:
        """End the remaining workers, and stop listening."""
        self._stop_listening()
        for slot in self._slots:
            slot.start.cancel()
        self._send_all(Command.END)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes():
            # Read until the channel ends. A worker that reports a failure at this time changes nothing.
            with contextlib.suppress(FatalError):
                while _readable([process], deadline) and self._receive(process):
                    pass
        self._kill_all()
        for slot in self._slots:
            if slot.process is not None:
                self._reap(slot, slot.process)

    def _slot(self, listeners: list[Listener]) -> Slot:
        return Slot(listeners, self._reactor, self._log, self._start_process)

    def _stop_listening(self) -> None:
        self._is_stopping = True
        for slot in self._slots:
            for listener in slot.listeners:
                listener.close()

    # --- workers

    def _processes(self) -> list[WorkerProcess]:
        return [slot.process for slot in self._slots if slot.process is not None]

    def _send_all(self, command: Command) -> None:
        for process in self._processes():
            process.send(command)

    def _start_process(self, slot: Slot) -> None:
        """Start a process, unless the daemon ends. Raises `OSError` for a shortage; there is no process then."""
        if self._is_stopping:
            return
        process = WorkerProcess(slot.listeners, self._options, self._log, first=slot is self._slots[0])
        try:
            handler = functools.partial(self._on_report, slot, process)
            self._reactor.register(process.fileno(), READ, handler)
        except OSError:
            process.kill()
            process.reap()
            raise
        slot.process = process

    def _await_ready(self, slot: Slot) -> None:
        deadline = time.monotonic() + START_SECONDS
        process = slot.process
        while process is not None and _readable([process], deadline) and self._receive(process):
            if process.is_serving:
                return
        raise FatalError(f"a worker was not ready within {START_SECONDS:.0f} s, or died; see its error in the log")

    def _on_report(self, slot: Slot, process: WorkerProcess, _mask: int) -> None:
        """The worker has sent a report, or has ended."""
        if self._receive(process):
            return
        status = self._reap(slot, process)
        if self._is_stopping:
            self._stop_if_all_ended()
            return
        lived = time.monotonic() - process.started
        if lived > SHORT_LIFE_SECONDS:
            slot.restart_seconds = RESTART_SECONDS
        else:
            slot.restart_seconds = min(MAX_RESTART_SECONDS, slot.restart_seconds * 2)
        self._log.error(
            "worker died",
            pid=process.pid,
            status=status,
            lived_seconds=round(lived, 3),
            restart_seconds=slot.restart_seconds,
        )
        self._reactor.call_later(slot.restart_seconds, slot.start)

    def _receive(self, process: WorkerProcess) -> bool:
        """Handle one report, if there is one. Returns False when the worker has ended."""
        try:
            report = process.receive()
        except EOFError:
            return False
        if report is None:
            return True
        if report.event is Event.METRICS:
            process.last_metrics, process.owes_metrics = report, False
        elif report.event is Event.READY:
            process.is_serving = True
        elif report.event is Event.FILE_GONE:
            self._stop_listening()
            self._kill_later(self._options.drain)
        else:
            self._on_failure(process, report)
        return True

    def _on_failure(self, process: WorkerProcess, report: WorkerReport) -> None:
        """The worker is about to end. Raises `FatalError` if the daemon has to end as well; see the table above."""
        others_serve = any(other.is_serving for other in self._processes() if other is not process)
        is_everyones = report.event is Event.FAILED and (process.is_serving or not others_serve)
        if is_everyones or not self._is_ready:
            raise FatalError(report.text or "a worker failed")
        self._log.error("worker failed", pid=process.pid, error=report.text)

    def _reap(self, slot: Slot, process: WorkerProcess) -> str:
        """Wait for the end of the process, and keep its counters. Returns how it ended."""
        self._reactor.unregister(process.fileno())
        slot.process = None
        slot.keep_counters(process.last_metrics.metrics)
        return process.reap()

    def _kill_later(self, seconds: float) -> None:
        """Kill the workers that have not ended in `seconds` and a little longer."""
        self._reactor.call_later(seconds + GRACE_SECONDS, self._kill_all)

    def _kill_all(self) -> None:
        for process in self._processes():
            process.kill()

    def _stop_if_all_ended(self) -> None:
        if not self._processes():
            self._reactor.stop()

    # --- reports

    def _update_metrics(self) -> None:
        """Ask all workers for their metrics and wait for the answers, except for those that still owe the last one."""
        waiting = [process for process in self._processes() if not process.owes_metrics]
        for process in waiting:
            process.owes_metrics = True
            process.send(Command.REPORT_METRICS)
        deadline = time.monotonic() + ANSWER_SECONDS
        while waiting:
            ready = _readable(waiting, deadline)
            if not ready:
                return
            for process in ready:
                # One that has ended is reaped by its handler in the loop.
                if not self._receive(process) or not process.owes_metrics:
                    waiting.remove(process)

    def metrics(self) -> Iterator[Metric]:
        """See `Instrumented`. The values are those of all workers together."""
        self._update_metrics()
        yield Metric("gauge", "tailsrv_workers", "Worker processes that run.", len(self._processes()))
        totals = {UNEXPECTED_ERRORS: unexpected_errors(self._reactor)}
        for slot in self._slots:
            for metric in slot.counters.values():
                _add(totals, metric)
        for process in self._processes():
            for metric in process.last_metrics.metrics:
                _add(totals, metric)
        yield from totals.values()

    def unhealthy(self) -> str | None:
        """See `Instrumented`."""
        if self._is_stopping:
            return "stopping"
        self._update_metrics()
        if not self._processes():
            paused = (slot.start.paused for slot in self._slots)
            return next(filter(None, paused), "no worker runs")
        texts = (process.last_metrics.text for process in self._processes())
        return next((text for text in texts if text is not None), None)


def _add(totals: dict[str, Metric], metric: Metric) -> None:
    """Add a metric to the one of the same name; see `GREATEST`."""
    known = totals.get(metric.name)
    if known is not None:
        value = max(known.value, metric.value) if metric.name in GREATEST else known.value + metric.value
        metric = msgspec.structs.replace(metric, value=value)
    totals[metric.name] = metric


def _readable(processes: list[WorkerProcess], deadline: float) -> list[WorkerProcess]:
    """Wait until channels are readable, and return their processes. At `deadline` (monotonic clock): an empty list."""
    with selectors.PollSelector() as selector:  # poll(2): select(2) takes no descriptor above 1023
        for process in processes:
            selector.register(process, selectors.EVENT_READ, process)
        return [key.data for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]


def _sibling(listener: Listener) -> Listener:
    """Another listener on the same port; for a Unix socket, which cannot be bound twice, the same one."""
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
        text = f"cannot bind {listener.address} once more for --workers: {reason(error)}; start fewer workers"
        raise FatalError(text) from None
    return Listener(other)
