"""The disk's part of a commit: append the batch to FILE, append its record to the journal, make both durable.

    --sync always      FILE and the journal are written, then synced at the same time. The record carries the CRC-32 of
                       the bytes that it covers, so recovery can tell which of the two reached the disk.
    --sync never       the batch is committed once the kernel has both
    --sync interval    the same, and both files are synced within the interval

Writes run on the loop's thread, because its processor's cache holds the bytes. Syncs run on two worker threads. The
loop waits for them at most `QUICK_SECONDS`, and only if the last sync was quicker than that: a single small message is
then acknowledged without another round of the loop. A disk that hangs never blocks the loop.

A failed sync raises `SyncFailedError` and is never retried: the kernel drops the pages that it could not write and
reports success for the next sync.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from collator.batch_builder import Batch
from collator.journal import checksum
from collator.streamfile import ForeignBytesError
from tailsrv_formats.journal import Record
from tailsrv_runtime.directory import SyncFailedError, sync_failed
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import begin_writeback

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.batch_builder import Piece
    from collator.journal import JournalFile
    from collator.options import Sync
    from collator.streamfile import StreamFile
    from collator.workers import Task, Worker
    from tailsrv_runtime.reactor import Reactor, Timer

PARALLEL_BYTES: Final = 1 << 19
"""From this size on a checksum takes longer than handing it to another thread, which computes it during the append."""

QUICK_BYTES: Final = 1 << 16
QUICK_SECONDS: Final = 0.002
"""The longest that the loop waits for a worker: it also serves signals and other peers."""

SLOW_SECONDS: Final = 0.1
"""If an interval's sync takes longer than this, the disk may hang, and the next write goes to a worker as well."""

Errors = tuple[BaseException | None, ...]


class DiskWriter:
    """Writes one batch at a time: `begin`, `write` until it succeeds, `end`."""

    def __init__(
        self,
        reactor: Reactor,
        *,
        file: StreamFile,
        journal: JournalFile,
        workers: tuple[Worker, Worker],
        sync: Sync,
        written: Callable[[Errors], None],
    ) -> None:
        """`workers`: the threads for FILE and for the journal. ``written(errors)``: see `write`."""
        self._reactor = reactor
        self._file = file
        self._journal = journal
        self._sync = sync
        self._written = written
        self._file_worker, self._journal_worker = workers
        self._interval_timer: Timer | None = None
        self.interval_began: float | None = None
        """When the interval's sync that is running began; None while none is running."""
        self._nothing = self._batch = Batch(file.end)
        self._pieces: tuple[Piece, ...] = ()
        self.record = Record(0, file.end, 0, 0)
        """The record of the batch that is being written, or of the last one."""
        self._numbered: list[bytes] = []
        self._named: list[bytes] = []
        self._recorded = False
        self._errors: Errors = ()
        self._sync_seconds = 0.0
        self._committed = file.end
        """Where the last committed batch ends, in bytes of FILE."""
        self.synced = file.end
        """The durable length of FILE in bytes, as far as known."""

    def begin(self, batch: Batch, numbered: list[bytes], named: list[bytes]) -> None:
        """Prepare to write `batch` and its record; for `numbered` and `named` see `JournalFile.entries`."""
        self._batch = batch
        self._recorded = False
        self.record = Record(batch.start, batch.end, self.synced, 0)
        self._numbered, self._named = numbered, named
        self._pieces = tuple(batch.pieces)  # the file's list shrinks as it is written

    def write(self) -> Errors | None:
        """Write what is not written yet, and make it durable if --sync says so. Also to try again after an error.

        Returns the errors of its steps (none: all is done), or None if a worker has to wait for the disk:
        ``written(errors)`` is then called in the loop.
        """
        if self.interval_began is not None and time.monotonic() - self.interval_began > SLOW_SECONDS:
            self._journal_worker.submit(self._write_in_background, self._tried)
            return None
        if self.record.end - self.record.start >= PARALLEL_BYTES and not self._recorded:
            return self._write_in_parallel()
        errors = self._write_in_turn()
        if any(errors) or self._sync.kind != "always":
            return errors
        return self._make_durable()

    def end(self) -> Batch:
        """Forget the batch, which is committed; returns it."""
        batch, self._batch, self._pieces = self._batch, self._nothing, ()
        self._committed = self.record.end
        if self._sync.kind == "always":
            self.synced = self.record.end
        elif self._sync.kind == "interval" and self._interval_timer is None and self.interval_began is None:
            self._interval_timer = self._reactor.call_later(self._sync.seconds, self._sync_interval)
        return batch

    @property
    def unwritten_bytes(self) -> int:
        """Bytes of the batch that FILE has not taken yet."""
        return sum(map(len, self._batch.pieces))

    # --- writing

    def _write_in_turn(self) -> Errors:
        try:
            self._append()
            self._record_once()
        except (OSError, MemoryError, FatalError, ForeignBytesError) as error:
            return (error,)
        return ()

    def _write_in_background(self) -> None:
        self._errors = self._write_in_turn()

    def _write_in_parallel(self) -> Errors | None:
        """Append on this thread while a worker writes the record. Another worker waits for that, not this thread."""
        if self._sync.kind == "always":
            recording = self._journal_worker.start(self._record_once)
            appended = self._append_caught()
            self._file_worker.submit(partial(self._sync_recorded, recording, appended), self._tried)
            return None
        recording = self._journal_worker.start(self._record_once, self._tried)
        self._errors = (self._append_caught(),)
        return (*self._errors, recording.error) if recording.ended_within(QUICK_SECONDS) else None

    def _append_caught(self) -> BaseException | None:
        try:
            self._append()
        except (OSError, MemoryError, FatalError, ForeignBytesError) as error:
            return error
        return None

    def _append(self) -> None:
        self._file.append(self._batch.pieces)

    def _record_once(self) -> None:
        if not self._recorded:
            self.record.crc = checksum(self._pieces)
            self._journal.append(self.record, self._numbered, self._named)
            self._recorded = True

    # --- syncing

    def _make_durable(self) -> Errors | None:
        batch = self._batch
        self._errors = ()
        if batch.reads == 1 and batch.size <= QUICK_BYTES:
            task = self._file_worker.start(self._sync_in_turn, self._tried)
            quick = QUICK_SECONDS if self._sync_seconds < QUICK_SECONDS else 0.0
            return (task.error,) if task.ended_within(quick) else None
        self._file_worker.submit(self._sync_both, self._tried)
        return None

    def _sync_in_turn(self) -> None:
        """Make both durable on one thread: hand both to the disk first, then wait for it."""
        began = time.monotonic()
        begin_writeback(self._file.fd)
        self._journal.begin_writeback()
        self._journal_durable()
        self.file_durable()
        self._sync_seconds = time.monotonic() - began

    def _sync_both(self) -> None:
        """Make both durable at the same time."""
        began = time.monotonic()
        journal = self._journal_worker.start(self._journal_durable)
        error: BaseException | None = None
        try:
            self.file_durable()
        except SyncFailedError as raised:
            error = raised
        self._errors = error, journal.join()
        self._sync_seconds = time.monotonic() - began

    def _sync_recorded(self, recording: Task, appended: BaseException | None) -> None:
        self._errors = appended, recording.join()
        if not any(self._errors):
            self._sync_both()

    def _tried(self, error: BaseException | None) -> None:
        self._written((*self._errors, error))

    def file_durable(self) -> None:
        """Make FILE durable. Raises `SyncFailedError`."""
        try:
            os.fdatasync(self._file.fd)
        except OSError as error:
            raise sync_failed(self._file.path, error) from None

    def _journal_durable(self) -> None:
        try:
            self._journal.sync()
        except OSError as error:
            raise sync_failed(self._journal.path, error) from None

    # --- --sync interval

    def _sync_interval(self) -> None:
        self._interval_timer = None
        self.interval_began = time.monotonic()
        upto = self._committed
        self._file_worker.submit(self.sync_now, partial(self._interval_done, upto))

    def sync_now(self) -> None:
        """Make everything written durable. Raises `SyncFailedError`."""
        self.file_durable()
        self._journal_durable()

    def sync_finally(self, done: Callable[[], None]) -> None:
        """Make everything written durable on a worker, then call ``done()`` in the loop."""

        def synced(error: BaseException | None) -> None:
            if error is not None:
                raise error
            done()

        self._file_worker.submit(self.sync_now, synced)

    def _interval_done(self, upto: int, error: BaseException | None) -> None:
        self.interval_began = None
        if error is not None:
            raise error
        self.note_durable(upto)
        if self._file.end > upto and self._interval_timer is None:
            self._interval_timer = self._reactor.call_later(self._sync.seconds, self._sync_interval)

    def note_durable(self, upto: int) -> None:
        """Note that FILE is durable up to byte `upto`."""
        self.synced = max(self.synced, upto)

    def close(self) -> None:
        """Cancel the interval's timer."""
        if self._interval_timer is not None:
            self._interval_timer.cancel()
