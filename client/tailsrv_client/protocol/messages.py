"""Messages out of bytes: pure, and fast, because nothing in it happens once per message in Python.

It knows the offset of its first byte and nothing of where bytes come from.
"""

from __future__ import annotations

from itertools import accumulate
from itertools import count as count_from
from typing import TYPE_CHECKING, Final

import msgspec

from tailsrv_formats.framing import FramingError
from tailsrv_formats.position import CHECKED_BYTES

if TYPE_CHECKING:
    from tailsrv_formats.framing import Framing

DEFAULT_MAX_MESSAGE_BYTES: Final = 64 << 20
"""The default limit of a consumer; the indexer has the same."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message of a stream."""

    payload: bytes
    """Its content, without terminator or length prefix."""
    offset: int
    """The byte of the stream at which it starts, its length prefix included."""
    end: int
    """The byte after its last one, its terminator included: where the next message starts."""
    number: int | None = None
    """How many messages are before it; None unless the consumer is `numbered` or has an index, and it is known."""
    time: str | None = None
    """When the indexer saw it, RFC 3339; None unless the consumer was asked to look it up (``timed=True``)."""


class MessageDecoder:
    """Turns the bytes of a stream, piece by piece, into its messages.

    `offset`: the message boundary at which the bytes begin. `before`: up to 64 bytes before it.
    """

    def __init__(self, framing: Framing, offset: int, before: bytes = b"") -> None:
        self._framing = framing
        self._data = before
        self._begin = offset - len(before)
        self._boundary = len(before)
        self._later: list[bytes] = []
        self._missing = 1
        self.broken: FramingError | None = None
        """Why no further message can come: bytes that are none. Says at which byte of the stream."""

    def feed(self, data: bytes, number: int | None = None) -> list[Message]:
        """The messages that `data` completes, the first one number `number`; check `broken` when they are handled."""
        self._later.append(data)
        self._missing -= len(data)
        if self._missing > 0 or not self._may_complete(data):
            return []
        self._join_pieces()
        start = self._boundary
        self._boundary, count = self._framing.walk(self._data, start, len(self._data))
        try:
            self._missing = self._framing.missing(self._data, self._boundary, len(self._data))
        except FramingError as error:
            self.broken = FramingError(f"at byte {self._begin + self._boundary}: {error}")
        return self._messages(start, self._boundary, count, number) if count else []

    def tail(self, offset: int) -> bytes:
        """The up to 64 bytes before `offset`, which is the end of a message of the last `feed` or the boundary."""
        end = offset - self._begin
        return bytes(self._data[max(0, end - CHECKED_BYTES) : end])

    def _may_complete(self, data: bytes) -> bool:
        """Whether a message can end in `data`. Does not search the earlier pieces of a long message again."""
        terminator = self._framing.terminator
        if not terminator or terminator in data:
            return True
        held = len(self._data) - self._boundary + sum(map(len, self._later))
        return held >= self._framing.max_message_bytes

    def _join_pieces(self) -> None:
        """Join the received pieces; drop bytes that are more than 64 before the boundary."""
        forget = max(0, self._boundary - CHECKED_BYTES)
        self._data = b"".join((self._data[forget:], *self._later))
        self._begin += forget
        self._boundary -= forget
        self._later.clear()

    def _messages(self, start: int, end: int, count: int, number: int | None) -> list[Message]:
        payloads = self._framing.payloads(self._data, start, end)
        if self._framing.name == "varint":
            offsets = self._walked(start, count)
        else:
            extra = (end - start - sum(map(len, payloads))) // count
            offsets = list(accumulate(map(extra.__add__, map(len, payloads)), initial=self._begin + start))
        if number is None:
            return list(map(Message, payloads, offsets, offsets[1:]))
        return list(map(Message, payloads, offsets, offsets[1:], count_from(number)))

    def _walked(self, start: int, count: int) -> list[int]:
        """The boundaries, one by one: varint prefixes differ in length."""
        offsets = [self._begin + start]
        for _ in range(count):
            start, _ = self._framing.walk(self._data, start, len(self._data), most=1)
            offsets.append(self._begin + start)
        return offsets
