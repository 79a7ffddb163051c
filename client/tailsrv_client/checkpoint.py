"""Checkpoint stores, and the policy that decides when a checkpoint is written.

A store is anything with the three methods of `CheckpointStore`. Here are two: a file that is replaced whole, and a
row of an SQLite database.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from tailsrv_client.durable_files import lock, replace
from tailsrv_client.errors import CheckpointError
from tailsrv_formats.checkpoint import Checkpoint, InvalidCheckpointError, decode
from tailsrv_formats.errors import reason

if TYPE_CHECKING:
    import sqlite3

LOG = logging.getLogger("tailsrv_client")

RETRY_SECONDS: Final = 1.0
"""A write that failed is not tried again sooner."""

TABLE: Final = "tailsrv_checkpoints"


@runtime_checkable
class CheckpointStore(Protocol):
    """Where a consumer keeps its checkpoint.

    A consumer calls `load` once, in the thread that makes it; `save` one at a time, perhaps in another thread; and
    `close` last. ``str(store)`` names the store in warnings.
    """

    def load(self) -> Checkpoint | None:
        """Return the checkpoint; None where there is none yet. Raises `CheckpointError`."""

    def save(self, checkpoint: Checkpoint, /) -> None:
        """Keep `checkpoint` in place of the one before, so that no crash undoes it. Raises `OSError`."""

    def close(self) -> None:
        """Let another consumer use the store."""


class FileCheckpointStore:
    """A checkpoint in the file `path`, replaced whole, so that a crash leaves the old or the new one.

    ``PATH.lock`` is held with flock until `close`: one consumer at a time. Raises `CheckpointError` where another
    one holds it, `OSError` where the file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._saved: Checkpoint | None = None
        self._lock = lock(path)

    def __str__(self) -> str:
        return self._path

    def load(self) -> Checkpoint | None:
        """See `CheckpointStore`."""
        try:
            with open(self._path, "rb") as file:
                self._saved = decode(file.read())
        except FileNotFoundError:
            return None
        except InvalidCheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from None
        return self._saved

    def save(self, checkpoint: Checkpoint, /) -> None:
        """See `CheckpointStore`."""
        if checkpoint != self._saved:
            os.close(replace(self._path, checkpoint.encode()))
            self._saved = checkpoint

    def close(self) -> None:
        """See `CheckpointStore`."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class SQLiteCheckpointStore:
    """A checkpoint in the row `name` of a table of the SQLite database at `path`.

    `save` is a transaction of its own. A program whose results are in the same database gets exactly-once by
    keeping ``consumer.position`` in the transaction of its results instead: see docs/clients.md.
    """

    def __init__(self, path: str, name: str) -> None:
        import sqlite3  # noqa: PLC0415 - only programs that use this store pay for the import

        self._path, self._name = path, name
        self._failures = (sqlite3.Error,)
        try:
            # `save` may be called in another thread, but never in two at once.
            self._database: sqlite3.Connection = sqlite3.connect(path, check_same_thread=False)
            try:
                with self._database:
                    self._database.execute(
                        f"CREATE TABLE IF NOT EXISTS {TABLE} (name TEXT PRIMARY KEY, checkpoint BLOB NOT NULL)"
                    )
            except BaseException:
                self._database.close()
                raise
        except sqlite3.Error as error:
            raise CheckpointError(f"cannot use {path} for checkpoints: {error}") from None

    def __str__(self) -> str:
        return f"{self._path}, {self._name!r}"

    def load(self) -> Checkpoint | None:
        """See `CheckpointStore`."""
        try:
            row = self._database.execute(f"SELECT checkpoint FROM {TABLE} WHERE name = ?", (self._name,)).fetchone()  # noqa: S608 - a constant
            # A row that was edited by hand is text.
            return None if row is None else decode(row[0].encode() if isinstance(row[0], str) else bytes(row[0]))
        except (*self._failures, InvalidCheckpointError, TypeError) as error:
            raise CheckpointError(f"{self}: {error}") from None

    def save(self, checkpoint: Checkpoint, /) -> None:
        """See `CheckpointStore`."""
        try:
            with self._database:
                self._database.execute(
                    f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)",  # noqa: S608 - a constant
                    (self._name, checkpoint.encode()),
                )
        except self._failures as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """See `CheckpointStore`."""
        self._database.close()


class CheckpointPolicy:
    """When a checkpoint is written: after `every_messages` messages and `every_seconds` seconds (None: not for that).

    A write that fails (a full disk) is logged once and retried when next due: reading continues. May be used
    by one thread while another one still saves.
    """

    def __init__(self, store: CheckpointStore, every_messages: int | None, every_seconds: float | None) -> None:
        self._store = store
        self._every_messages, self._every_seconds = every_messages, every_seconds
        self._unsaved, self._saved_at = 0, time.monotonic()
        # A `save` in another thread, whose caller was cancelled, may still run when `close` writes the last checkpoint.
        self._guard = threading.Lock()
        self.error: OSError | None = None
        """Why the last write failed; None when it did not."""
        try:
            self.saved = store.load()
        except BaseException:
            store.close()
            raise

    def acked(self, messages: int) -> bool:
        """`messages` more are handled. Returns whether the checkpoint is due."""
        self._unsaved += messages
        if self.error is None and self._every_messages is not None and self._unsaved >= self._every_messages:
            return True
        return self.seconds_left() == 0

    def seconds_left(self) -> float | None:
        """Seconds until the checkpoint is due; None: there is nothing to save, or no time limit."""
        every = self._every_seconds
        if self.error is not None:
            every = max(every or 0.0, RETRY_SECONDS)
        elif not self._unsaved:
            return None
        return None if every is None else max(0.0, self._saved_at + every - time.monotonic())

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint`. Raises `OSError`."""
        with self._guard:
            try:
                self._store.save(checkpoint)
            except OSError as error:
                self.error = error
                raise
            else:
                self.saved = checkpoint
                self.error = None
            finally:
                # Counted from the end: a disk that takes a second must not be busy with this all the time.
                self._unsaved, self._saved_at = 0, time.monotonic()

    def try_to_save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint`; a failure is logged, when it begins and when it ends."""
        failed_before = self.error is not None
        try:
            self.save(checkpoint)
        except OSError as error:
            if not failed_before:
                LOG.warning(
                    "cannot write checkpoint %s (%s): the file has %s; retrying: free space on its disk",
                    self._store,
                    reason(error),
                    self.describe_saved(),
                )
        else:
            if failed_before:
                LOG.warning("checkpoint %s is written again", self._store)

    def describe_saved(self) -> str:
        """What the checkpoint says, for a warning."""
        return "no position" if self.saved is None else f"byte {self.saved.offset}"

    def close(self) -> None:
        """Let another consumer use the store."""
        self._store.close()
