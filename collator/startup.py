"""The start: FILE is locked and recovered on a worker thread, and becomes a stream that can be written.

Recovery may read and copy gigabytes, and the disk may not answer. The loop answers health checks and signals meanwhile.
An obstacle (no space, descriptors or memory) is retried. Producers that connect meanwhile wait in the kernel's queue.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from collator.obstacles import obstacle
from collator.recovery import StoppedError, Tracker, recover
from collator.streamfile import StreamFile
from collator.workers import Worker
from tailsrv_formats.errors import reason
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import spare_descriptors
from tailsrv_runtime.watches import Watches, flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.obstacles import Obstacle
    from collator.options import Options
    from collator.recovery import Recovered
    from collator.workers import Task
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

GONE_EVENTS: Final = flags.MOVE_SELF | flags.DELETE_SELF | flags.ATTRIB
"""A file was moved or deleted, or lost one of its names."""

RETRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 0.2
"""The time limit for a recovery to notice a stop. One that waits for the disk is abandoned."""


class Stream(msgspec.Struct):
    """A recovered stream, and the resources of the system that work on it needs."""

    file: StreamFile
    recovered: Recovered
    watches: Watches
    file_worker: Worker
    journal_worker: Worker

    def close(self) -> None:
        """Close all but the journal and the commit mark, and end the threads."""
        self.watches.close()
        self.file.close()
        self.file_worker.close()
        self.journal_worker.close()


class Startup:
    """Recovers FILE, however long that takes."""

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        log: Log,
        *,
        recovered: Callable[[Stream], None],
        waiting: Callable[[], None],
    ) -> None:
        """``recovered(stream)`` is called in the loop at the end, and ``waiting()`` at each obstacle."""
        self._reactor = reactor
        self._options = options
        self._log = log
        self._recovered = recovered
        self._waiting = waiting
        # What an attempt has opened stays open for the next one: FILE must stay locked.
        self._workers: list[Worker] = []
        self._watches: Watches | None = None
        self._file: StreamFile | None = None
        self._stream: Stream | None = None
        self._facts: dict[str, object] = {}
        self._tracker = Tracker()
        self._task: Task | None = None
        self._timer: Timer | None = None
        self._obstacle: Obstacle | None = None

    def begin(self) -> None:
        """Begin an attempt."""
        self._timer = None
        try:
            with spare_descriptors():
                while len(self._workers) < 2:
                    self._workers.append(Worker(self._reactor, ("file", "journal")[len(self._workers)]))
                watches = self._watches = self._watches or Watches()
        except OSError as error:
            self._failed(error)
            return
        self._task = self._workers[0].submit(partial(self._work, watches), self._worked)

    def _work(self, watches: Watches) -> None:
        """On a thread. The loop does not use the attributes that are set here before this has returned."""
        options = self._options
        # No producer is accepted yet, so only health checks could take these descriptors.
        with spare_descriptors():
            file = self._file = self._file or StreamFile(options.file)
            # By descriptor: the name may mean another file by now.
            watches.add(f"/proc/self/fd/{file.fd}", GONE_EVENTS)
            framing = make_framing(options.framing, options.max_message_bytes)
            recovered = recover(file, framing, options.sync.kind, self._tracker, self._facts, adopt=options.adopt)
            self._stream = Stream(file, recovered, watches, *self._workers)

    def _worked(self, error: BaseException | None) -> None:
        self._task = None
        if isinstance(error, StoppedError) or (error is None and self._tracker.stopped):
            self._reactor.stop()
        elif error is not None:
            self._failed(error)
        elif self._stream is not None:
            self._finish(self._stream)

    def _finish(self, stream: Stream) -> None:
        path, found = stream.file.path, stream.recovered
        if self._obstacle is not None:
            self._log.info(self._obstacle.over, file=path)
        write = self._log.warning if self._facts else self._log.info
        if found.created:
            write("stream created", file=path, **self._facts)
        else:
            facts = {"found": found.finding, "bytes": found.end, "producers": len(found.producers)}
            write("recovered", file=path, **self._facts, **facts)
        self._workers, self._watches, self._file, self._stream = [], None, None, None
        self._recovered(stream)

    def _failed(self, error: BaseException) -> None:
        """Wait at an obstacle, and try again; any other error ends the daemon."""
        path = self._options.file
        met = obstacle(error)
        if met is None:
            if isinstance(error, OSError):
                raise FatalError(
                    f"cannot recover {path}, its journal or its commit mark: {reason(error)}; check the permissions of"
                    " its directory and the disk"
                ) from None
            raise error
        if self._obstacle is None or self._obstacle.event != met.event:
            write = self._log.warning if met.passes else self._log.error
            write(met.event, file=path, error=met.error, advice=met.advice, waiting_for="the start")
        self._obstacle = met
        if self._tracker.stopped:
            self._reactor.stop()
            return
        self._timer = self._reactor.call_later(RETRY_SECONDS, self.begin)
        self._waiting()

    def unhealthy(self) -> str:
        """Why nothing is committed yet."""
        path = self._options.file
        if self._obstacle is not None:
            return f"cannot recover {path}: {self._obstacle.event} ({self._obstacle.error})"
        return f"recovering {path}: {self._tracker.done} of {self._tracker.total} bytes"

    def stop(self) -> None:
        """End at once; the next start repeats an interrupted recovery."""
        self._tracker.stopped = True
        if self._task is None:
            self._reactor.stop()
        elif self._timer is None:
            self._timer = self._reactor.call_later(STOP_SECONDS, self._reactor.stop)

    def close(self) -> None:
        """Close what is open, unless a thread still uses it: the process is about to end anyway."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.abandon()
            return
        if self._stream is not None:
            self._stream.recovered.close()
        if self._file is not None:
            self._file.close()
        if self._watches is not None:
            self._watches.close()
        for worker in self._workers:
            worker.close()
