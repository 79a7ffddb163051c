"""Commits as a state machine: a batch is written, made durable and published; then its producers are acknowledged.

One batch, or one rewrite of the journal, is under way at a time:

| state      | what happens                              | next       | when                                           |
| ---------- | ----------------------------------------- | ---------- | ---------------------------------------------- |
| IDLE       | nothing: a batch may begin                | WRITING    | `commit` is called                             |
|            |                                           | REPLACING  | the journal or the commit mark is missing      |
|            |                                           | COMPACTING | the journal has grown                          |
| WRITING    | diskwriter.py writes FILE and the journal | PUBLISHING | both are written, and durable if --sync always |
|            | and syncs them                            | RESCUING   | FILE has bytes that another process appended   |
| RESCUING   | rescue.py moves these bytes out of FILE   | WRITING    | it has moved them                              |
| PUBLISHING | the commit mark moves                     | IDLE       | it has moved: the batch is committed           |
|            |                                           | REPLACING  | the journal or the commit mark is missing      |
| REPLACING  | sidecars.py writes the missing files from | PUBLISHING | they are written, and a batch waits            |
|            | memory                                    | IDLE       | they are written, and no batch waits           |
| COMPACTING | sidecars.py writes a smaller journal      | IDLE       | it is written, or has to wait for free space   |
| BLOCKED    | nothing: an obstacle (obstacles.py) has   | WRITING    | `RETRY_SECONDS` have passed: the interrupted   |
|            | interrupted a step                        | PUBLISHING | step is tried again (WRITING after RESCUING)   |
|            |                                           | REPLACING  |                                                |
| FAILED     | the daemon ends                           |            |                                                |

WRITING, RESCUING, PUBLISHING and REPLACING become BLOCKED at an obstacle, and every state becomes FAILED at any other
error of its step. A failed sync is such an error: nothing more is acknowledged, and the next start asks the disk. (One
of --sync interval ends the daemon directly, whatever the state.)

`Committer._become` is the one place where the state changes.
"""

from __future__ import annotations

import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from collator.diskwriter import DiskWriter
from collator.journal import sample
from collator.obstacles import obstacle
from collator.rescue import Rescue
from collator.streamfile import ForeignBytesError
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.metrics import BYTES, SECONDS, Histogram
from tailsrv_runtime.shortage import Retried, is_shortage, spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.acks import Progress
    from collator.batch_builder import Batch
    from collator.diskwriter import Errors
    from collator.journal import Standing
    from collator.obstacles import Obstacle
    from collator.options import Sync
    from collator.sidecars import Sidecars
    from collator.streamfile import StreamFile
    from collator.workers import Worker
    from tailsrv_formats.journal import Record
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

SLOW_SECONDS: Final = 10.0
"""A commit that takes longer is reported by health checks."""

RETRY_SECONDS: Final = 1.0
"""The time between two attempts of a step that an obstacle interrupts."""


class State(StrEnum):
    """What a committer is doing; see the table above."""

    IDLE = "idle"
    WRITING = "writing"
    RESCUING = "rescuing"
    PUBLISHING = "publishing"
    REPLACING = "replacing"
    COMPACTING = "compacting"
    BLOCKED = "blocked"
    FAILED = "failed"


# As globals: they are compared by identity in every round of the loop, and an attribute costs a look-up more.
IDLE: Final = State.IDLE
WRITING: Final = State.WRITING
RESCUING: Final = State.RESCUING
PUBLISHING: Final = State.PUBLISHING
REPLACING: Final = State.REPLACING
COMPACTING: Final = State.COMPACTING
BLOCKED: Final = State.BLOCKED
FAILED: Final = State.FAILED

NEXT: Final[dict[State, frozenset[State]]] = {
    IDLE: frozenset({WRITING, REPLACING, COMPACTING, FAILED}),
    WRITING: frozenset({PUBLISHING, RESCUING, BLOCKED, FAILED}),
    RESCUING: frozenset({WRITING, BLOCKED, FAILED}),
    PUBLISHING: frozenset({IDLE, REPLACING, BLOCKED, FAILED}),
    REPLACING: frozenset({IDLE, PUBLISHING, BLOCKED, FAILED}),
    COMPACTING: frozenset({IDLE, FAILED}),
    BLOCKED: frozenset({WRITING, PUBLISHING, REPLACING, FAILED}),
    FAILED: frozenset(),
}
"""The table above."""


class Committer:
    """Commits one batch at a time; ``committed(batch)`` is called in the loop after the commit mark has moved."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        file: StreamFile,
        sidecars: Sidecars,
        workers: tuple[Worker, Worker],
        sync: Sync,
        log: Log,
        committed: Callable[[Batch], None],
        producers: dict[bytes, Progress],
    ) -> None:
        """`workers`: the threads for FILE and for the journal. `producers`: all named producers ever seen."""
        self._reactor = reactor
        self._file = file
        self._sidecars = sidecars
        self._journal = sidecars.journal
        self._log = log
        self._committed = committed
        self._producers = producers
        self._worker = workers[0]
        self._disk = DiskWriter(
            reactor, file=file, journal=sidecars.journal, workers=workers, sync=sync, written=self._written
        )
        self.state = IDLE
        self.obstacle: Obstacle | None = None
        """Why nothing can be committed at the moment; it stays until the interrupted step has succeeded."""
        self._retry: Timer | None = None
        self._progressed: list[Standing] = []
        self.uncommitted_bytes = 0
        """Bytes of the batch that is under way; 0 while there is none."""
        self._compaction = Retried(
            reactor, log, "journal compaction", self._open_for_compaction, file=sidecars.journal.path
        )
        self._began = 0.0
        self.commits = 0
        self.last_commit = time.monotonic()
        self.sizes = Histogram("tailsrv_collate_commit_bytes", "Bytes of a commit.", BYTES)
        self.durations = Histogram("tailsrv_collate_commit_seconds", "From a batch taken to its mark moved.", SECONDS)

    def _become(self, state: State) -> None:
        """Change the state. Raises `RuntimeError` for a change that is not in the table: a defect of ours."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a committer that is {self.state} cannot become {state}")
        self.state = state

    # --- health

    @property
    def blocked(self) -> str | None:
        """Why nothing can be written at the moment; None when everything can."""
        met = self.obstacle
        return None if met is None else f"cannot write {self._file.path}: {met.event} ({met.error})"

    @property
    def slow(self) -> str | None:
        """Says that the disk has not answered for long; None when it has."""
        waiting = [self._began] if self.state is not IDLE else []
        if self._disk.interval_began is not None:
            waiting.append(self._disk.interval_began)
        seconds = time.monotonic() - min(waiting) if waiting else 0.0
        if seconds < SLOW_SECONDS:
            return None
        return f"commit of {self._file.path} pending: the disk has not answered for {seconds:.0f} s"

    @property
    def uses_files(self) -> bool:
        """Whether a worker may be using the files at the moment."""
        return self.state is not IDLE or self._disk.interval_began is not None

    # --- a commit: write, publish

    def commit(self, batch: Batch, progressed: list[Standing]) -> None:
        """Begin to commit `batch`, which is not empty and belongs to the committer from now on. The state is IDLE.

        `progressed`: the named producers that have bytes in it.
        """
        self._began = time.monotonic()
        self.uncommitted_bytes = batch.size
        self._progressed = progressed
        self._disk.begin(batch, *self._journal.entries(progressed))
        self._write()

    def sync_finally(self, done: Callable[[], None]) -> None:
        """Make everything written durable, and then call ``done()`` in the loop."""
        self._disk.sync_finally(done)

    def _write(self) -> None:
        self._become(WRITING)
        errors = self._disk.write()
        if errors is not None:
            self._written(errors)

    def _written(self, errors: Errors) -> None:
        """All steps of the write have been tried."""
        if not any(errors):
            self._publish()
            return
        raised = [error for error in errors if error is not None]
        foreign = [error for error in raised if isinstance(error, ForeignBytesError)]
        fatal = [error for error in raised if error not in foreign and obstacle(error) is None]
        if foreign and not fatal:
            self._rescue(foreign[0].start)
        else:
            self._interrupted(
                (fatal or raised)[0],
                self._write,
                f"commit failed: cannot write {self._file.path} or {self._journal.path}",
                "nothing more is acknowledged; check the disk, then start the collator again",
            )

    def _publish(self) -> None:
        self._become(PUBLISHING)
        if self._sidecars.lost:
            self._replace()
            return
        try:
            self._sidecars.move_mark(self._disk.record.end)
        except OSError as error:
            self._interrupted(
                error,
                self._publish,
                f"commit failed: cannot write the commit mark of {self._file.path}",
                "check the disk, then start the collator again",
            )
            return
        if self.obstacle is not None:
            self._overcome()
        batch = self._disk.end()
        now = time.monotonic()
        self.last_commit = now
        self.commits += 1
        self.sizes.observe(batch.size)
        self.durations.observe(now - self._began)
        self.uncommitted_bytes = 0
        self._become(IDLE)
        self._committed(batch)
        if self._journal.has_grown:
            self._compact()

    # --- obstacles

    def _interrupted(self, error: BaseException, step: Callable[[], None], failure: str, advice: str) -> None:
        """Try `step` again later if `error` is an obstacle; else fail, with `failure` and `advice` for the operator."""
        met = obstacle(error)
        if met is None:
            self._fail(error, failure, advice)
        self._become(BLOCKED)
        if self.obstacle is None or self.obstacle.event != met.event:
            write = self._log.warning if met.passes else self._log.error
            waiting = self._disk.unwritten_bytes
            write(met.event, file=self._file.path, error=met.error, advice=met.advice, waiting_bytes=waiting)
        self.obstacle = met
        self._retry = self._reactor.call_later(RETRY_SECONDS, step)

    def _fail(self, error: BaseException, failure: str, advice: str) -> NoReturn:
        self._become(FAILED)
        if isinstance(error, OSError):
            raise FatalError(f"{failure}: {reason(error)}; {advice}") from None
        raise error

    def _overcome(self) -> None:
        if self.obstacle is not None:
            self._log.info(self.obstacle.over, file=self._file.path)
            self.obstacle = None

    # --- rescue

    def _rescue(self, start: int) -> None:
        """Move bytes that another process has appended out of FILE; then the batch is written again."""
        self._become(RESCUING)
        try:
            with spare_descriptors():
                rescue = Rescue(self._file, start)
        except OSError as error:
            self._not_rescued(error)
            return
        self._worker.submit(rescue.run, partial(self._rescued, rescue))

    def _rescued(self, rescue: Rescue, error: BaseException | None) -> None:
        if error is not None:
            self._not_rescued(error)
            return
        if rescue.copied:
            self._log.error(
                "foreign bytes rescued",
                file=self._file.path,
                rescued=rescue.path,
                offset=rescue.start,
                rescued_bytes=rescue.copied,
                advice="only the collator may write this file; send messages to its ports instead",
            )
        self._write()

    def _not_rescued(self, error: BaseException) -> None:
        self._interrupted(
            error,
            self._write,  # which finds the foreign bytes again
            f"cannot rescue foreign bytes from {self._file.path}",
            "make its directory writable for this user, then start the collator again",
        )

    # --- the journal and the commit mark are written again

    def look(self) -> None:
        """After an event: check whether the journal and the commit mark exist, and write what is missing."""
        if self.state in (REPLACING, COMPACTING):
            return  # a worker is exchanging the files
        self._sidecars.look()
        if self._sidecars.lost and self.state is IDLE:
            self._replace()

    def _replace(self) -> None:
        """Write the missing files; until they are there, nothing is acknowledged."""
        self._become(REPLACING)
        try:
            self._sidecars.open()
        except OSError as error:
            self._not_replaced(error)
            return
        self._rewrite(self._replaced)

    def _replaced(self, upto: int, error: BaseException | None) -> None:
        self._sidecars.replaced(failed=error is not None)
        if error is not None:
            self._not_replaced(error)
            return
        self._disk.note_durable(upto)
        if self.uncommitted_bytes:
            self._publish()
            return
        self._become(IDLE)
        if self._sidecars.lost:
            self._replace()
        else:
            self._overcome()

    def _not_replaced(self, error: BaseException) -> None:
        self._interrupted(
            error,
            self._replace,
            f"cannot rewrite the missing {self._journal.path}",
            "nothing more is acknowledged; check the permissions of its directory and the disk, then start the collator"
            " again",
        )

    def _compact(self) -> None:
        """Between two commits, so that the journal records exactly what producers have been told."""
        sidecars = self._sidecars
        if not sidecars.is_open and self._compaction.paused is None:  # if it is paused, its timer tries again
            self._compaction()
        if sidecars.is_open:
            self._become(COMPACTING)
            self._rewrite(self._compacted)

    def _open_for_compaction(self) -> None:
        try:
            self._sidecars.open()
        except OSError as error:
            if is_shortage(error):
                raise
            self._not_compacted(error)

    def _compacted(self, upto: int, error: BaseException | None) -> None:
        self._sidecars.replaced(failed=error is not None)
        if error is not None:
            self._not_compacted(error)
        else:
            self._disk.note_durable(upto)
        self._become(IDLE)
        if self._sidecars.lost:
            self._replace()

    def _not_compacted(self, error: BaseException) -> None:
        """Continue with the old journal if the error passes."""
        met = obstacle(error)
        if met is None:
            self._fail(error, f"cannot compact {self._journal.path}", "check the disk, then start the collator again")
        self._journal.postpone()
        self._log.warning("journal compaction failed", file=self._journal.path, error=met.error)

    def _rewrite(self, done: Callable[[int, BaseException | None], None]) -> None:
        """Write a new journal, and a new commit mark if it is missing, on a worker; then ``done(upto, error)``."""
        if not self.uncommitted_bytes:
            self._began = time.monotonic()
        standing = {name: (name, progress, progress.acked, progress.at) for name, progress in self._producers.items()}
        if self.uncommitted_bytes:  # the batch is written, and is acknowledged as soon as there is a journal
            standing |= {progressed[0]: progressed for progressed in self._progressed}
        producers = [one for one in standing.values() if one[2]]
        first = sample(self._file.fd, self._file.end)
        self._sidecars.unwatch()
        self._worker.submit(partial(self._rewrite_on_worker, first, producers), partial(done, first.end))

    def _rewrite_on_worker(self, first: Record, producers: list[Standing]) -> None:
        # FILE first, whatever --sync says: recovery needs bytes on the disk that the journal's first record verifies.
        if self._disk.synced < first.end:
            self._disk.file_durable()
        self._sidecars.replace(first, producers)

    def close(self) -> None:
        """Cancel all timers."""
        self._compaction.cancel()
        self._disk.close()
        if self._retry is not None:
            self._retry.cancel()
