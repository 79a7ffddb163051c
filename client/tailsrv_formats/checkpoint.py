"""A checkpoint: where a consumer goes on, as one line of JSON.

    {"offset":123456,"digest":"…","number":1234}

`offset` and `digest` are a `Position`; `number` is that of the next message, or null where it is not known.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tailsrv_formats.errors import TailsrvError
from tailsrv_formats.position import Position


class InvalidCheckpointError(TailsrvError, ValueError):
    """Bytes that are not a checkpoint."""


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a consumer goes on."""

    offset: int
    """Bytes, 0 or more."""
    digest: str
    """See `Position`."""
    number: int | None = None
    """The number of the next message; None where it is not known."""

    @property
    def position(self) -> Position:
        """The position without the number."""
        return Position(self.offset, self.digest)

    def encode(self) -> bytes:
        """The line, its newline included."""
        return _encode(self) + b"\n"


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Checkpoint).decode


def decode(content: bytes) -> Checkpoint:
    """The checkpoint that `content` is. Raises `InvalidCheckpointError`."""
    try:
        checkpoint = _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidCheckpointError(f"not a checkpoint ({error}); if it was one and is damaged, remove it") from None
    if checkpoint.offset < 0:
        raise InvalidCheckpointError(f"not a checkpoint: its offset is {checkpoint.offset}")
    return checkpoint
