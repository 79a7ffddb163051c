"""From a batch to a promise: it is written (diskwriter.py), the mark moves, and then the producers may be told.

One batch, or one new beginning of the journal, is under way at a time:

    write       → publish; where somebody else has appended to FILE: → rescue → write
    publish     the mark moves, and the batch is committed; where journal or mark is lost: → replace → publish
    idle        where the journal has grown, or a file is lost: → replace → idle
    each of them waits at an obstacle (obstacles.py), and is tried again until it can be done

A failed sync is no obstacle: nothing more is promised, and the next start asks the disk.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

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
"""How soon an obstacle is tried again."""


class Committer:
    """Commits one batch at a time; `committed(batch)` is called in the loop when it is done."""

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
        """`workers`: for FILE, and for the journal beside it. `producers`: all that there ever were."""
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
        self._retry: Timer | None = None
        self._obstacle: Obstacle | None = None
        self._progressed: list[Standing] = []
        self._replacing = False
        self._compaction = Retried(
            reactor, log, "journal compaction", self._open_for_compaction, file=sidecars.journal.path
        )
        self._began = 0.0
        self.commits = 0
        self.last_commit = time.monotonic()
        self.sizes = Histogram("tailsrv_collate_commit_bytes", "Bytes of a commit.", BYTES)
        self.durations = Histogram("tailsrv_collate_commit_seconds", "From a batch taken to its mark moved.", SECONDS)

    @property
    def batch(self) -> Batch | None:
        """What is being committed."""
        return self._disk.batch

    @property
    def busy(self) -> bool:
        """Whether a batch, or a new beginning of the journal, is under way."""
        return self.batch is not None or self._replacing

    @property
    def blocked(self) -> str | None:
        """Why nothing can be written at the moment."""
        met = self._obstacle
        return None if met is None else f"cannot write {self._file.path}: {met.event} ({met.error})"

    @property
    def syncing(self) -> bool:
        """Whether what an interval has brought is being made durable."""
        return self._disk.interval_began is not None

    @property
    def slow(self) -> str | None:
        """What to say when the disk has not answered for long."""
        waiting = [self._began] if self.busy else []
        if self._disk.interval_began is not None:
            waiting.append(self._disk.interval_began)
        seconds = time.monotonic() - min(waiting) if waiting else 0.0
        if seconds < SLOW_SECONDS:
            return None
        return f"commit of {self._file.path} pending: the disk has not answered for {seconds:.0f} s"

    def commit(self, batch: Batch, progressed: list[Standing]) -> None:
        """Begin to commit `batch`, not empty, which nobody else may touch from now on.

        `progressed`: the named producers that have bytes in it.
        """
        self._began = time.monotonic()
        self._progressed = progressed
        self._disk.begin(batch, *self._journal.entries(progressed))

    def sync_finally(self, done: Callable[[], None]) -> None:
        """Make everything written durable, and then call ``done()`` in the loop."""
        self._disk.sync_finally(done)

    # --- publish

    def _written(self, errors: Errors) -> None:
        """Everything was tried: go on, or wait, or end."""
        met: OSError | MemoryError | None = None
        foreign: ForeignBytesError | None = None
        for error in errors:
            if isinstance(error, ForeignBytesError):
                foreign = error
            elif isinstance(error, (OSError, MemoryError)) and obstacle(error) is not None:
                met = error
            elif isinstance(error, OSError):
                raise FatalError(
                    f"commit failed: cannot write {self._file.path} or {self._journal.path}: {reason(error)}; nothing"
                    " more is acknowledged; check the disk, then start the collator again"
                )
            elif error is not None:
                raise error
        if foreign is not None:
            self._rescue(foreign.start)
        elif met is not None:
            self._wait(met, self._disk.write)
        else:
            self._publish()

    def _publish(self) -> None:
        if self._sidecars.lost:
            self._replace()
            return
        try:
            self._sidecars.mark.move(self._disk.record.end)
        except OSError as error:
            if obstacle(error) is None:
                raise FatalError(
                    f"commit failed: cannot write the commit mark of {self._file.path}: {reason(error)}; check the"
                    " disk, then start the collator again"
                ) from None
            self._wait(error, self._publish)
            return
        self._finish()

    def _finish(self) -> None:
        batch = self.batch
        assert batch is not None  # noqa: S101 - for the type checker
        if self._obstacle is not None:
            self._over()
        self._disk.end()
        now = time.monotonic()
        self.last_commit = now
        self.commits += 1
        self.sizes.observe(batch.size)
        self.durations.observe(now - self._began)
        self._committed(batch)
        if self._journal.has_grown:
            self._compact()

    # --- obstacles

    def _wait(self, error: OSError | MemoryError, again: Callable[[], None]) -> None:
        met = obstacle(error)
        assert met is not None  # noqa: S101 - for the type checker: the callers have looked
        if self._obstacle is None or self._obstacle.event != met.event:
            write = self._log.warning if met.passes else self._log.error
            waiting = sum(map(len, self.batch.pieces)) if self.batch is not None else 0
            write(met.event, file=self._file.path, error=met.error, advice=met.advice, waiting_bytes=waiting)
        self._obstacle = met
        self._retry = self._reactor.call_later(RETRY_SECONDS, again)

    def _over(self) -> None:
        assert self._obstacle is not None  # noqa: S101 - for the type checker
        self._log.info(self._obstacle.over, file=self._file.path)
        self._obstacle = None

    # --- rescue

    def _rescue(self, start: int) -> None:
        """Move aside what somebody else has appended; the batch is written once more then."""
        try:
            with spare_descriptors():
                rescue = Rescue(self._file, start)
        except OSError as error:
            self._rescue_failed(error)
            return
        self._worker.submit(rescue.run, partial(self._rescued, rescue))

    def _rescued(self, rescue: Rescue, error: BaseException | None) -> None:
        if error is not None:
            self._rescue_failed(error)
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
        self._disk.write()

    def _rescue_failed(self, error: BaseException) -> None:
        if isinstance(error, (OSError, MemoryError)) and obstacle(error) is not None:
            self._wait(error, self._disk.write)  # which finds them again
        elif isinstance(error, OSError):
            raise FatalError(
                f"cannot rescue foreign bytes from {self._file.path}: {reason(error)}; make its directory writable for"
                " this user, then start the collator again"
            )
        else:
            raise error

    # --- journal and mark are written again

    def look(self) -> None:
        """Something happened to the journal or the mark: see whether they are there, and write what is not."""
        if self._replacing:
            return
        self._sidecars.look()
        if self._sidecars.lost and self.batch is None:
            self._replacing = True  # nothing is committed meanwhile
            self._replace()

    def _compact(self) -> None:
        """Between two commits, so that what producers are told is what the journal says."""
        sidecars = self._sidecars
        if not sidecars.is_open and self._compaction.paused is None:  # if it is paused, its timer tries again
            self._compaction()
        if sidecars.is_open:
            self._submit_replace(self._compacted)

    def _open_for_compaction(self) -> None:
        try:
            self._sidecars.open()
        except OSError as error:
            if is_shortage(error):
                raise
            self._not_compacted(error)

    def _compacted(self, upto: int, error: BaseException | None) -> None:
        self._replaced(upto, failed=error is not None)
        if error is not None:
            self._not_compacted(error)
        if self._sidecars.lost:
            self._replacing = True
            self._replace()

    def _not_compacted(self, error: BaseException) -> None:
        """Go on with the old journal, unless the disk itself is at fault."""
        met = obstacle(error)
        if met is not None:
            self._journal.postpone()
            self._log.warning("journal compaction failed", file=self._journal.path, error=met.error)
        elif isinstance(error, OSError):
            raise FatalError(
                f"cannot compact {self._journal.path}: {reason(error)}; check the disk, then start the collator again"
            )
        else:
            raise error

    def _replace(self) -> None:
        """Write again what is lost; until that is done, nothing is acknowledged."""
        try:
            self._sidecars.open()
        except OSError as error:
            self._replace_failed(error)
            return
        self._submit_replace(self._lost_replaced)

    def _lost_replaced(self, upto: int, error: BaseException | None) -> None:
        self._replaced(upto, failed=error is not None)
        if error is not None:
            self._replacing = self.batch is None
            self._replace_failed(error)
        elif self.batch is not None:
            self._publish()
        elif self._sidecars.lost:
            self._replacing = True
            self._replace()
        elif self._obstacle is not None:
            self._over()

    def _replace_failed(self, error: BaseException) -> None:
        if isinstance(error, (OSError, MemoryError)) and obstacle(error) is not None:
            self._wait(error, self._replace)
        elif isinstance(error, OSError):
            raise FatalError(
                f"cannot rewrite the missing {self._journal.path}: {reason(error)}; nothing more is acknowledged; check"
                " the permissions of its directory and the disk, then start the collator again"
            )
        else:
            raise error

    def _submit_replace(self, done: Callable[[int, BaseException | None], None]) -> None:
        self._replacing = True
        if self.batch is None:
            self._began = time.monotonic()
        standing = {name: (name, progress, progress.acked, progress.at) for name, progress in self._producers.items()}
        if self.batch is not None:  # it is written, and will be acknowledged as soon as there is a journal
            standing |= {moved[0]: moved for moved in self._progressed}
        producers = [one for one in standing.values() if one[2]]
        first = sample(self._file.fd, self._file.end)
        self._worker.submit(partial(self._begin_again, first, producers), partial(done, first.end))

    def _begin_again(self, first: Record, producers: list[Standing]) -> None:
        # FILE first, whatever --sync says: behind a first record that the disk does not bear out there is no way back.
        if self._disk.synced < first.end:
            self._disk.file_durable()
        self._sidecars.replace(first, producers)

    def _replaced(self, upto: int, *, failed: bool) -> None:
        self._replacing = False
        self._sidecars.replaced(failed=failed)
        if not failed:
            self._disk.note_durable(upto)

    def close(self) -> None:
        """Forget what is due."""
        self._compaction.cancel()
        self._disk.close()
        if self._retry is not None:
            self._retry.cancel()
