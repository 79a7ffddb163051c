"""A consumer's place, kept in a file: one line of JSON, replaced whole, so that a crash leaves the old or the new one.

    {"offset":123456,"digest":"…","number":1234}

`offset` and `digest` are a `Position`; `number` is that of the next message, or null where it isn't known.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Final

import msgspec

from tailsrv_client.errors import CheckpointError
from tailsrv_client.files import replace, take
from tailsrv_formats.errors import reason
from tailsrv_formats.position import Position

LOG = logging.getLogger("tailsrv_client")

RETRY_SECONDS: Final = 1.0
"""A write that failed is not tried again sooner."""


class Saved(msgspec.Struct, frozen=True):
    """What a checkpoint says."""

    offset: int
    digest: str
    number: int | None = None

    @property
    def position(self) -> Position:
        """Where to go on."""
        return Position(self.offset, self.digest)


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Saved).decode


def encode(saved: Saved) -> bytes:
    """The content of a checkpoint file."""
    return _encode(saved) + b"\n"


def decode(content: bytes) -> Saved:
    """What the content says. Raises `CheckpointError`."""
    try:
        saved = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"no checkpoint ({error}); if it is one that was damaged, remove it") from None
    if saved.offset < 0:
        raise CheckpointError(f"no checkpoint: its offset is {saved.offset}")
    return saved


class Checkpoint:
    """The checkpoint in the file `path`, ours alone until `close`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = take(path)
        try:
            self.saved = self._load()
        except BaseException:
            self.close()
            raise

    def save(self, saved: Saved) -> None:
        """Write it down; when this returns, no crash makes it undone. Raises `OSError`."""
        if saved != self.saved:
            os.close(replace(self.path, encode(saved)))
            self.saved = saved

    def close(self) -> None:
        """Let another consumer have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _load(self) -> Saved | None:
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        try:
            return decode(content)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None


class Keeper:
    """When a checkpoint is written: after so many messages, and so many seconds; None: not for that reason.

    A write that fails (a full disk) is logged once and tried again when it is next due: reading goes on. May be used
    by one thread while another one still saves.
    """

    def __init__(self, path: str, every_messages: int | None, every_seconds: float | None) -> None:
        self._checkpoint = Checkpoint(path)
        self._every_messages, self._every_seconds = every_messages, every_seconds
        self._unsaved, self._saved_at = 0, time.monotonic()
        self._guard = threading.Lock()
        self.error: OSError | None = None
        """Why the last write failed; None when it did not."""

    @property
    def saved(self) -> Saved | None:
        """What it says."""
        return self._checkpoint.saved

    def took(self, messages: int) -> bool:
        """So many more messages are taken. Returns whether it is time to save."""
        self._unsaved += messages
        if self.error is None and self._every_messages is not None and self._unsaved >= self._every_messages:
            return True
        return self.seconds_left() == 0

    def seconds_left(self) -> float | None:
        """Seconds until it is time to save what was taken; None: there is nothing to save, or no time for it."""
        every = self._every_seconds
        if self.error is not None:
            every = max(every or 0.0, RETRY_SECONDS)
        elif not self._unsaved:
            return None
        return None if every is None else max(0.0, self._saved_at + every - time.monotonic())

    def save(self, saved: Saved) -> None:
        """Write it down. Raises `OSError`."""
        with self._guard:
            try:
                self._checkpoint.save(saved)
            except OSError as error:
                self.error = error
                raise
            else:
                self.error = None
            finally:
                # Counted from the end: a disk that takes a second must not be busy with this all the time.
                self._unsaved, self._saved_at = 0, time.monotonic()

    def save_if_possible(self, saved: Saved) -> None:
        """Write it down; a failure is logged, when it begins and when it ends."""
        failed_before = self.error is not None
        path = self._checkpoint.path
        try:
            self.save(saved)
        except OSError as error:
            if not failed_before:
                before = "nothing" if self.saved is None else f"byte {self.saved.offset}"
                LOG.warning(
                    "checkpoint %s cannot be written (%s): it says %s; it is tried again: make room on its disk",
                    path,
                    reason(error),
                    before,
                )
        else:
            if failed_before:
                LOG.warning("checkpoint %s is written again", path)

    def close(self) -> None:
        """Let another consumer have it."""
        self._checkpoint.close()
