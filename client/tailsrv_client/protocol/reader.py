"""One reader's place in a stream. Pure: headers out, bytes in.

Law: what it hands out is one stream without a gap, a repetition or a jump. To go on at byte N it asks for the up to
64 bytes before N as well and compares them with those that it knows: another stream raises `StreamDiverged`, one
that is shorter (a mirror that is behind, a file put back from a copy) is left for the next address. It knows nothing
of messages; of commits only that the server sends no byte that it would ever take back.
"""

from __future__ import annotations

from typing import Final

from tailsrv_client.errors import StreamDiverged
from tailsrv_formats.position import CHECKED_BYTES, Position, digest

LARGEST_OFFSET: Final = (1 << 63) - 1
"""Header numbers stay below 2^63."""


class Reader:
    """One reader's place in a stream. Pure: headers out, bytes in.

    `start` is where to begin; `stop` the offset of the first byte that isn't wanted (None: follow for ever).
    """

    def __init__(self, start: Position, stop: int | None = None) -> None:
        self.offset = start.offset
        self.stop = stop
        self.promised = 0
        """The stream is known to reach this byte: a server that sends nothing before it is no working one."""
        self.before = b""
        """The up to 64 bytes before the start, once the first bytes have arrived."""
        self._digest = start.digest
        self._tail = None if start.offset else b""
        self._unchecked = 0
        self._heard = b""

    @property
    def done(self) -> bool:
        """Whether everything wanted has been handed out."""
        return self.stop is not None and self.offset >= self.stop

    @property
    def checking(self) -> bool:
        """Whether the server still owes bytes that we know: it has none of its own to wait for."""
        return self._unchecked > 0 and (self._tail is not None or bool(self._digest))

    @property
    def owed(self) -> bool:
        """Whether the server has bytes for us that are known to exist: its silence is no idle stream's."""
        return self.checking or self.offset < self.promised

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.offset, self._digest if self._tail is None else digest(self._tail))

    def header(self) -> bytes:
        """What to send on a new connection."""
        self._unchecked = min(self.offset, CHECKED_BYTES)
        self._heard = b""
        begin = self.offset - self._unchecked
        return b"%d\n" % begin if self.stop is None else b"%d %d\n" % (begin, self.stop - begin)

    def received(self, data: bytes) -> bytes:
        """The new bytes in `data`, which may be none. Raises `StreamDiverged`."""
        if self._unchecked:
            data = self._check(data)
        if self.stop is not None:
            data = data[: max(0, self.stop - self.offset)]
        if data:
            self.offset += len(data)
            self._tail = data[-CHECKED_BYTES:] if len(data) >= CHECKED_BYTES else self._joined(data)
        return data

    def _joined(self, data: bytes) -> bytes:
        return ((self._tail or b"") + data)[-CHECKED_BYTES:]

    def _check(self, data: bytes) -> bytes:
        heard, fresh = self._heard + data[: self._unchecked], data[self._unchecked :]
        self._heard = heard
        self._unchecked -= len(data) - len(fresh)
        if self._tail is not None:
            if not self._tail.startswith(heard):
                raise StreamDiverged(self.offset)
        elif not self._unchecked:
            if self._digest and digest(heard) != self._digest:
                raise StreamDiverged(self.offset)
            self._tail = self.before = heard
        return fresh
