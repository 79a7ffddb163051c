"""From a batch to a promise: append, journal, make durable, move the mark; then the producers may be told.

    always      FILE and the journal are written, then synced side by side. The record carries the CRC-32 of the bytes
                it covers, so recovery can tell which of the two got there.
    never       the kernel has them: that is all.
    interval    the same, and a sync of both follows within the interval.

No space is not an error: what could not be done yet is tried again until it can be, and nothing else happens
meanwhile. A failed sync is: the kernel drops what it could not write and calls the next sync a success, so nothing is
retried and nothing more is promised; the next start asks the disk.

A batch of one producer's one delivery is made durable on the loop's own thread: nobody else waits, and a thread's
wake-up would cost a good part of a fast disk's sync. With more at hand, a worker syncs while the next batch gathers.
What is written is written on the loop's thread: its processor's cache holds the bytes.
"""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from collator.journal import checksum, sample
from collator.records import Record
from collator.workers import Worker
from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.files import begin_writeback
from tailsrv.kit.measures import BYTES, SECONDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.acks import Progress
    from collator.gather import Batch, Piece
    from collator.journal import JournalFile
    from collator.options import Sync
    from collator.streamfile import StreamFile
    from tailsrv.kit.logs import Log
    from tailsrv.kit.mark import MarkWriter
    from tailsrv.kit.reactor import Reactor, Timer

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
RETRY_SECONDS: Final = 1.0
"""How soon a full file system is tried again."""

BESIDE_BYTES: Final = 1 << 19
"""A checksum over so much takes longer than to have another thread compute it while FILE is written."""

INLINE_BYTES: Final = 1 << 16
INLINE_SECONDS: Final = 0.002
"""A sync that took longer the last time is left to the worker: the loop has signals and peers to hear."""

Errors = tuple[BaseException | None, ...]
Moved = list[tuple[bytes, "Progress", int, int]]
"""Of each named producer in a batch: its name, itself, and its ACKED and AT by then."""


class SyncFailedError(FatalError):
    """The disk did not take what the kernel had accepted."""


class Committer:
    """Commits one batch at a time; `committed(batch)` is called in the loop when it is done."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        file: StreamFile,
        journal: JournalFile,
        mark: MarkWriter,
        sync: Sync,
        log: Log,
        committed: Callable[[Batch], None],
        producers: dict[bytes, Progress],
    ) -> None:
        self._reactor = reactor
        self._file = file
        self._journal = journal
        self._mark = mark
        self._sync = sync
        self._log = log
        self._committed = committed
        self._producers = producers
        self._file_worker = Worker(reactor, "file")
        self._journal_worker = Worker(reactor, "journal")
        self._interval_timer: Timer | None = None
        self._interval_busy = False
        self._retry: Timer | None = None
        self.batch: Batch | None = None
        """What is being committed."""
        self._record = Record(0, 0, 0, 0)
        self._pieces: tuple[Piece, ...] = ()
        self._errors: Errors = ()
        self._numbered: list[bytes] = []
        self._named: list[bytes] = []
        self._recorded = False
        self._compacting = False
        self._sync_seconds = 0.0
        self._began = 0.0
        self.synced = file.end
        """How much of FILE is known to be durable, in bytes."""
        self.stalled: str | None = None
        """Why nothing can be written at the moment."""
        self.commits = 0
        self.last_commit = time.monotonic()
        self.sizes = Histogram("tailsrv_collate_commit_bytes", "Bytes of a commit.", BYTES)
        self.durations = Histogram("tailsrv_collate_commit_seconds", "From a batch taken to its mark moved.", SECONDS)

    @property
    def busy(self) -> bool:
        """Whether a batch, or a new beginning of the journal, is under way."""
        return self.batch is not None or self._compacting

    def commit(self, batch: Batch, moved: Moved) -> None:
        """Begin to commit `batch`, not empty, which nobody else may touch from now on."""
        self._began = time.monotonic()
        self.batch = batch
        self._recorded = False
        self._record = Record(batch.start, batch.end, self.synced, 0)
        self._numbered, self._named = self._journal.entries(moved)
        self._pieces = tuple(batch.pieces)  # the file's list shrinks as it is written
        self._advance()

    # --- the steps; each may be tried again where it stopped

    def _advance(self) -> None:
        batch = self.batch
        assert batch is not None  # noqa: S101 - for the type checker
        errors = self._write_both()
        if any(errors) or self._sync.kind != "always":
            self._settle(errors)
        elif batch.turns == 1 and batch.size <= INLINE_BYTES and self._sync_seconds < INLINE_SECONDS:
            self._settle(self._sync_in_turn())
        else:
            self._file_worker.submit(self._in_background, self._background_done)

    def _write_both(self) -> Errors:
        if self._record.end - self._record.start >= BESIDE_BYTES and not self._recorded:
            return self._beside(self._record_once, self._append)
        try:
            self._append()
            self._record_once()
        except OSError as error:
            return (error,)
        return ()

    def _sync_in_turn(self) -> Errors:
        """Make both durable on this thread: the disk is given both, and then waited for."""
        began = time.monotonic()
        begin_writeback(self._file.fd)
        self._journal.begin_writeback()
        try:
            self._journal_durable()
            self._file_durable()
        except SyncFailedError as error:
            return (error,)
        self._sync_seconds = time.monotonic() - began
        return ()

    def _sync_both(self) -> Errors:
        """Make both durable at the same time, on any thread, and note how long that took."""
        began = time.monotonic()
        errors = self._beside(self._journal_durable, self._file_durable)
        self._sync_seconds = time.monotonic() - began
        return errors

    def _beside(self, journal: Callable[[], None], file: Callable[[], None]) -> Errors:
        """Do both at the same time, ``file()`` on this thread."""
        self._journal_worker.begin(journal)
        error: BaseException | None = None
        try:
            file()
        except (OSError, FatalError) as raised:
            error = raised
        return error, self._journal_worker.join()

    def _in_background(self) -> None:
        self._errors = self._sync_both()

    def _background_done(self, error: BaseException | None) -> None:
        if error is not None:
            raise error
        self._settle(self._errors)

    def _append(self) -> None:
        assert self.batch is not None  # noqa: S101 - for the type checker
        self._file.append(self.batch.pieces)

    def _record_once(self) -> None:
        if not self._recorded:
            self._record.crc = checksum(self._pieces)
            self._journal.append(self._record, self._numbered, self._named)
            self._recorded = True

    def _file_durable(self) -> None:
        try:
            os.fdatasync(self._file.fd)
        except OSError as error:
            raise _sync_failed(self._file.path, error) from None

    def _journal_durable(self) -> None:
        try:
            self._journal.sync()
        except OSError as error:
            raise _sync_failed(self._journal.path, error) from None

    def _settle(self, errors: Errors) -> None:
        """Everything was tried: move the mark, or wait for space, or end."""
        full: OSError | None = None
        for error in errors:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                full = error
            elif isinstance(error, OSError):
                raise FatalError(
                    f"cannot write {self._file.path} or its journal: {reason(error)}; nothing more is acknowledged,"
                    " look after the disk and start again"
                )
            elif error is not None:
                raise error
        if full is None:
            try:
                self._mark.move(self._record.end)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise FatalError(f"cannot move the commit mark of {self._file.path}: {reason(error)}") from None
                full = error
        if full is not None:
            self._stall(full)
        else:
            self._finish()

    def _stall(self, error: OSError) -> None:
        if self.stalled is None:
            self.stalled = f"no space to write {self._file.path}: {reason(error)}"
            self._log.warning(
                "no space",
                file=self._file.path,
                error=reason(error),
                waiting_bytes=sum(map(len, self.batch.pieces)) if self.batch else 0,
                advice="make room: nothing is lost, producers wait, and it goes on by itself",
            )
        self._retry = self._reactor.call_later(RETRY_SECONDS, self._advance)

    def _finish(self) -> None:
        batch = self.batch
        assert batch is not None  # noqa: S101 - for the type checker
        if self.stalled is not None:
            self.stalled = None
            self._log.info("space again", file=self._file.path)
        self.batch, self._pieces = None, ()
        now = time.monotonic()
        self.last_commit = now
        self.commits += 1
        self.sizes.observe(batch.size)
        self.durations.observe(now - self._began)
        if self._sync.kind == "always":
            self.synced = batch.end
        elif self._sync.kind == "interval" and self._interval_timer is None and not self._interval_busy:
            self._interval_timer = self._reactor.call_later(self._sync.seconds, self._sync_interval)
        self._committed(batch)
        if self._journal.has_grown:
            self._compact()

    # --- the interval

    def _sync_interval(self) -> None:
        self._interval_timer = None
        self._interval_busy = True
        upto = self._file.end if self.batch is None else self._record.start
        self._file_worker.submit(self.sync_now, partial(self._interval_done, upto))

    def sync_now(self) -> None:
        """Make everything written durable. Raises `SyncFailedError`."""
        self._file_durable()
        self._journal_durable()

    def _interval_done(self, upto: int, error: BaseException | None) -> None:
        self._interval_busy = False
        if error is not None:
            raise error
        self.synced = upto
        if self._file.end > upto and self._interval_timer is None:
            self._interval_timer = self._reactor.call_later(self._sync.seconds, self._sync_interval)

    # --- the journal begins anew

    def _compact(self) -> None:
        """Between two commits, so that what producers are told is what the journal says."""
        self._compacting = True
        producers = {name: progress for name, progress in self._producers.items() if progress.acked}
        first = sample(self._file.fd, self._file.end)
        self._file_worker.submit(partial(self._begin_anew, first, producers), partial(self._compacted, first.end))

    def _begin_anew(self, first: Record, producers: dict[bytes, Progress]) -> None:
        # FILE first, whatever --sync says: behind a first record that the disk does not bear out there is no way back.
        if self.synced < first.end:
            self._file_durable()
        self._journal.begin(first, producers)

    def _compacted(self, upto: int, error: BaseException | None) -> None:
        self._compacting = False
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            self._journal.postpone()
            self._log.warning("journal not compacted", file=self._journal.path, error=reason(error))
        elif isinstance(error, OSError):
            raise FatalError(f"cannot compact {self._journal.path}: {reason(error)}; start again")
        elif error is not None:
            raise error
        else:
            self.synced = upto

    def close(self) -> None:
        """End the threads; what is under way there comes to its end, but is told to nobody."""
        for timer in (self._interval_timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._file_worker.close()
        self._journal_worker.close()


def _sync_failed(path: str, error: OSError) -> SyncFailedError:
    return SyncFailedError(
        f"cannot sync {path}: {reason(error)}; nothing more is acknowledged, and the next start trusts the disk alone:"
        " look after the disk"
    )
