"""The position of one reader in a stream. Pure: headers out, bytes in.

Law: the bytes that a reader returns are one stream without a gap or a repetition. To continue at byte N, a reader also
asks for up to 64 bytes before N and compares them with the bytes that it has read. If they differ it raises
`StreamDiverged`. If they do not arrive, the server's stream is shorter (a mirror that lags, a file restored from a
copy), and the client tries the next address. This module knows nothing of messages.
"""

from __future__ import annotations

from typing import Final

from tailsrv_client.errors import StreamDiverged
from tailsrv_formats.position import CHECKED_BYTES, Position, digest

LARGEST_OFFSET: Final = (1 << 63) - 1
"""Header numbers stay below 2^63."""


class Reader:
    """The position of one reader in a stream.

    `start` is where to begin; `stop` the offset of the first byte that isn't wanted (None: follow for ever).
    """

    def __init__(self, start: Position, stop: int | None = None) -> None:
        self.offset: int = start.offset
        self.stop = stop
        self.known_end = 0
        """The stream is known to reach this byte: a server that stays silent before it does not work."""
        self.before: bytes = b""
        """The up to 64 bytes before the start, once the first bytes have arrived."""
        self._digest = start.digest
        self._tail = None if start.offset else b""
        self._unchecked = 0
        self._received = b""

    @property
    def done(self) -> bool:
        """Whether all bytes up to `stop` were returned."""
        return self.stop is not None and self.offset >= self.stop

    @property
    def checking(self) -> bool:
        """Whether the server has yet to send the bytes before `offset`, which we know to exist."""
        return self._unchecked > 0 and (self._tail is not None or bool(self._digest))

    @property
    def expects_bytes(self) -> bool:
        """Whether bytes that are known to exist have yet to arrive: the server's silence is then not an idle stream."""
        return self.checking or self.offset < self.known_end

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.offset, self._digest if self._tail is None else digest(self._tail))

    def header(self) -> bytes:
        """What to send on a new connection."""
        self._unchecked = min(self.offset, CHECKED_BYTES)
        self._received = b""
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
        received, new = self._received + data[: self._unchecked], data[self._unchecked :]
        self._received = received
        self._unchecked -= len(data) - len(new)
        if self._tail is not None:
            if not self._tail.startswith(received):
                raise StreamDiverged(self.offset)
        elif not self._unchecked:
            if self._digest and digest(received) != self._digest:
                raise StreamDiverged(self.offset)
            self._tail = self.before = received
        return new
