"""The disk's part of a commit: a batch is appended, its record is journalled, and both are made durable.

    always      FILE and the journal are written, then synced side by side. The record carries the CRC-32 of the bytes
                it covers, so recovery can tell which of the two got there.
    never       the kernel has them: that is all.
    interval    the same, and a sync of both follows within the interval.

What is written is written on the loop's thread: its processor's cache holds the bytes. What waits for the disk is done
by two workers. The loop waits at most `QUICK_SECONDS` for them, and only where the last sync was quicker than that: the
acknowledgement of a lone message then costs no further turn of the loop. A disk that hangs holds nobody.

A failed sync raises: the kernel drops what it could not write and calls the next sync a success, so nothing is retried.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from collator.beside import SyncFailedError, sync_failed
from collator.journal import checksum
from collator.streamfile import ForeignBytesError
from tailsrv_formats.journal import Record
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import begin_writeback

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.batch_builder import Batch, Piece
    from collator.journal import JournalFile
    from collator.options import Sync
    from collator.streamfile import StreamFile
    from collator.workers import Task, Worker
    from tailsrv_runtime.reactor import Reactor, Timer

BESIDE_BYTES: Final = 1 << 19
"""A checksum over so much takes longer than to have another thread compute it while FILE is written."""

QUICK_BYTES: Final = 1 << 16
QUICK_SECONDS: Final = 0.002
"""The longest that the loop waits for a worker: others have signals and peers for it."""

SLOW_SECONDS: Final = 0.1
"""A sync of an interval that takes longer may hang, and then a write may hang as well."""

Errors = tuple[BaseException | None, ...]


class DiskWriter:
    """Writes one batch at a time; ``written(errors)`` is called in the loop when everything has been tried."""

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
        """`workers`: for FILE, and for the journal beside it."""
        self._reactor = reactor
        self._file = file
        self._journal = journal
        self._sync = sync
        self._written = written
        self._file_worker, self._journal_worker = workers
        self._interval_timer: Timer | None = None
        self.interval_began: float | None = None
        """When the sync of an interval began; None while there is none."""
        self.batch: Batch | None = None
        """What is being written."""
        self.record = Record(0, 0, 0, 0)
        """Its record."""
        self._pieces: tuple[Piece, ...] = ()
        self._numbered: list[bytes] = []
        self._named: list[bytes] = []
        self._recorded = False
        self._errors: Errors = ()
        self._sync_seconds = 0.0
        self.synced = file.end
        """How much of FILE is known to be durable, in bytes."""

    def begin(self, batch: Batch, numbered: list[bytes], named: list[bytes]) -> None:
        """Write `batch` and its record, whose producers are `numbered` and `named`: see `JournalFile.entries`."""
        self.batch = batch
        self._recorded = False
        self.record = Record(batch.start, batch.end, self.synced, 0)
        self._numbered, self._named = numbered, named
        self._pieces = tuple(batch.pieces)  # the file's list shrinks as it is written
        self.write()

    def end(self) -> None:
        """The batch is committed."""
        self.batch, self._pieces = None, ()
        if self._sync.kind == "always":
            self.synced = self.record.end
        elif self._sync.kind == "interval" and self._interval_timer is None and self.interval_began is None:
            self._interval_timer = self._reactor.call_later(self._sync.seconds, self._sync_interval)

    def write(self) -> None:
        """Write what is not written yet, and make it durable; also to try again."""
        if self.interval_began is not None and time.monotonic() - self.interval_began > SLOW_SECONDS:
            self._journal_worker.submit(self._write_in_background, self._tried)
        elif self.record.end - self.record.start >= BESIDE_BYTES and not self._recorded:
            self._write_beside()
        else:
            errors = self._write_in_turn()
            if any(errors) or self._sync.kind != "always":
                self._written(errors)
            else:
                self._start_sync()

    def _write_in_turn(self) -> Errors:
        try:
            self._append()
            self._record_once()
        except (OSError, MemoryError, ForeignBytesError) as error:
            return (error,)
        return ()

    def _write_in_background(self) -> None:
        self._errors = self._write_in_turn()

    def _write_beside(self) -> None:
        """Append on this thread while a worker records, and leave it to another thread to wait for that."""
        if self._sync.kind == "always":
            recording = self._journal_worker.start(self._record_once)
            appended = self._append_caught()
            self._file_worker.submit(partial(self._sync_recorded, recording, appended), self._tried)
        else:
            recording = self._journal_worker.start(self._record_once, self._tried)
            self._errors = (self._append_caught(),)
            recording.settle(QUICK_SECONDS)

    def _append_caught(self) -> BaseException | None:
        try:
            self._append()
        except (OSError, MemoryError, FatalError, ForeignBytesError) as error:
            return error
        return None

    def _append(self) -> None:
        assert self.batch is not None  # noqa: S101 - for the type checker
        self._file.append(self.batch.pieces)

    def _record_once(self) -> None:
        if not self._recorded:
            self.record.crc = checksum(self._pieces)
            self._journal.append(self.record, self._numbered, self._named)
            self._recorded = True

    # --- sync

    def _start_sync(self) -> None:
        batch = self.batch
        assert batch is not None  # noqa: S101 - for the type checker
        self._errors = ()
        if batch.reads == 1 and batch.size <= QUICK_BYTES:
            task = self._file_worker.start(self._sync_in_turn, self._tried)
            task.settle(QUICK_SECONDS if self._sync_seconds < QUICK_SECONDS else 0.0)
        else:
            self._file_worker.submit(self._sync_both, self._tried)

    def _sync_in_turn(self) -> None:
        """Make both durable on one thread: the disk is given both, and then waited for."""
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

    # --- the interval

    def _sync_interval(self) -> None:
        self._interval_timer = None
        self.interval_began = time.monotonic()
        upto = self._file.end if self.batch is None else self.record.start
        self._file_worker.submit(self.sync_now, partial(self._interval_done, upto))

    def sync_now(self) -> None:
        """Make everything written durable. Raises `SyncFailedError`."""
        self.file_durable()
        self._journal_durable()

    def sync_finally(self, done: Callable[[], None]) -> None:
        """Make everything written durable, and then call ``done()`` in the loop."""

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
        """FILE is durable up to `upto`: somebody else has synced it."""
        self.synced = max(self.synced, upto)

    def close(self) -> None:
        """Forget what is due."""
        if self._interval_timer is not None:
            self._interval_timer.cancel()
