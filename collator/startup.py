"""From a command line to a stream that can be written: FILE is taken over beside the loop.

Recovery may read and copy gigabytes, and the disk may not answer. So it runs on a thread, and the loop answers health
checks and signals meanwhile. What is short (space, descriptors, memory) is waited for; producers wait in the kernel's
queue, which the listeners have from the first moment on.
"""

from __future__ import annotations

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
"""A file was moved, deleted, or has one name less."""

RETRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 0.2
"""How long a recovery has to notice that it shall end. One that waits for the disk is left where it is."""


class Taken(msgspec.Struct):
    """A stream that is ours, with all that the work on it needs from the system."""

    file: StreamFile
    recovered: Recovered
    watches: Watches
    file_worker: Worker
    journal_worker: Worker

    def close(self) -> None:
        """Close what is not journal or mark, and end the threads."""
        self.watches.close()
        self.file.close()
        self.file_worker.close()
        self.journal_worker.close()


class Startup:
    """Takes FILE over, however long that takes."""

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        log: Log,
        *,
        taken: Callable[[Taken], None],
        waiting: Callable[[], None],
    ) -> None:
        """``taken(stream)`` is called in the loop in the end, ``waiting()`` whenever something is short."""
        self._reactor = reactor
        self._options = options
        self._log = log
        self._taken = taken
        self._waiting = waiting
        self._workers: list[Worker] = []
        self._watches: Watches | None = None
        self._file: StreamFile | None = None
        self._found: Recovered | None = None
        self._facts: dict[str, object] = {}
        self._tracker = Tracker()
        self._task: Task | None = None
        self._timer: Timer | None = None
        self._obstacle: Obstacle | None = None

    def begin(self) -> None:
        """Try, and try again."""
        self._timer = None
        try:
            with spare_descriptors():
                while len(self._workers) < 2:
                    self._workers.append(Worker(self._reactor, ("file", "journal")[len(self._workers)]))
                self._watches = self._watches or Watches()
        except OSError as error:
            self._wait(error)
            return
        self._task = self._workers[0].submit(self._work, self._worked)

    def _work(self) -> None:
        """On a thread: nobody else looks at what is set here before this has ended."""
        options = self._options
        assert self._watches is not None  # noqa: S101 - for the type checker: begin() has seen to it
        # No producer has been accepted yet, so nobody takes what is spared here but health checks.
        with spare_descriptors():
            self._file = self._file or StreamFile(options.file)
            # By descriptor: the name may mean another file by now.
            self._watches.add(f"/proc/self/fd/{self._file.fd}", GONE_EVENTS)
            framing = make_framing(options.framing, options.max_message_bytes)
            self._found = recover(
                self._file, framing, options.sync.kind, self._tracker, self._facts, adopt=options.adopt
            )

    def _worked(self, error: BaseException | None) -> None:
        self._task = None
        if isinstance(error, StoppedError):
            self._reactor.stop()
            return
        if isinstance(error, (OSError, MemoryError)):
            self._wait(error)
            return
        if error is not None:
            raise error
        if self._tracker.stopped:
            self._reactor.stop()
            return
        file, found, watches = self._file, self._found, self._watches
        assert file is not None  # noqa: S101 - for the type checker: it has just been opened
        assert found is not None  # noqa: S101 - the same
        assert watches is not None  # noqa: S101 - the same
        if self._obstacle is not None:
            self._log.info(self._obstacle.over, file=file.path)
        write = self._log.warning if self._facts else self._log.info
        write(
            "stream created" if found.created else "recovered",
            file=file.path,
            **self._facts,
            found=found.finding,
            bytes=found.end,
            producers=len(found.producers),
        )
        taken = Taken(file, found, watches, *self._workers)
        self._workers, self._watches, self._file, self._found = [], None, None, None
        self._taken(taken)

    def _wait(self, error: OSError | MemoryError) -> None:
        path = self._options.file
        met = obstacle(error)
        if met is None:
            assert isinstance(error, OSError)  # noqa: S101 - for the type checker: a lack of memory is waited out
            raise FatalError(
                f"cannot recover {path}, its journal or its commit mark: {reason(error)}; check the permissions of its"
                " directory and the disk"
            ) from None
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
        """End at once; what recovery has begun, the next start does again."""
        self._tracker.stopped = True
        if self._task is None:
            self._reactor.stop()
        elif self._timer is None:
            self._timer = self._reactor.call_later(STOP_SECONDS, self._reactor.stop)

    def close(self) -> None:
        """Close what is open, except under a thread that still works on it: then the process's end does."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.abandon()
            return
        if self._found is not None:
            self._found.journal.close()
            self._found.mark.close()
        if self._file is not None:
            self._file.close()
        if self._watches is not None:
            self._watches.close()
        for worker in self._workers:
            worker.close()
