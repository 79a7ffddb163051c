"""What a whole message is: the one place that knows.

A stream is messages, each with its terminator or its length prefix, one right behind the other. A framing finds
the boundaries between them: bytes in, boundaries out. It knows nothing of sockets, files or clocks, keeps no
state between calls, and copies nothing. "Not enough bytes yet" is a value; only bytes that no further byte can
mend raise `FramingError`.

| name               | a message is                                             | source                            |
| ------------------ | -------------------------------------------------------- | --------------------------------- |
| newline, nul       | payload, then the terminator; the payload is free of it  | text files; ``xargs -0``          |
| u16be u32be u32le  | length of the payload, fixed width, then the payload     |                                   |
| varint             | length as unsigned LEB128 (10 bytes at most), payload    | protobuf's delimited messages     |

All offsets are indices into the buffer that the caller passes in; `start` must be a boundary.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Final

from tailsrv_formats.errors import TailsrvError

FRAMINGS: Final = ("newline", "nul", "u16be", "u32be", "u32le", "varint")
"""The framings that `make_framing` knows, the default one first."""

DEFAULT_MAX_MESSAGE_BYTES: Final = 1 << 20
"""What a collator accepts unless told otherwise: Kafka's and NATS's default, too."""

NO_LIMIT: Final = 1 << 62
"""More messages than a file can hold: `walk` without a limit on their number."""

VARINT_MAX_BYTES: Final = 10
"""A 64-bit number in groups of seven bits: protobuf's limit."""

PROBE_BYTES: Final = 256
FEW: Final = 5
"""Terminators in so many bytes, up to which removing beats counting: messages of 50 bytes and more."""

SPLIT_BYTES: Final = 1 << 14
"""Up to here, what a split copies costs less than it saves."""

Buffer = bytes | bytearray
"""What framings read: types that search themselves (a memoryview does not)."""


class FramingError(TailsrvError, ValueError):
    """The bytes at a boundary are not, and can't become, a message: too long, or no length at all."""


class Framing(ABC):
    """Finds message boundaries. Stateless; one instance serves any number of streams and threads."""

    name: str
    terminator: bytes = b""
    """What completes an unfinished message; empty where nothing can (length prefixes)."""

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self.max_message_bytes = max_message_bytes

    @abstractmethod
    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """Step over whole messages, from the boundary `start`, within ``data[:stop]``.

        Stops at the first boundary at or behind `until` (default: `stop`, so as far as the messages go), after
        `most` messages, or before the first message that is incomplete or impossible.
        Returns the boundary reached and the number of messages stepped over.
        """

    @abstractmethod
    def missing(self, data: Buffer, start: int, stop: int) -> int:
        """How many more bytes, at least, complete the message that begins at `start` and ends behind `stop`.

        Raises `FramingError` when no number of them would: that is how a caller learns why `walk` stopped.
        """

    @abstractmethod
    def payloads(self, data: Buffer, start: int, stop: int) -> list[bytes]:
        """The payloads of the whole messages in ``data[start:stop]``; both must be boundaries."""

    @abstractmethod
    def wrap(self, payload: bytes) -> bytes:
        """The message that carries `payload`. Raises `FramingError` when none can (too long, holds the terminator)."""

    def reach(self, data: Buffer, start: int, stop: int) -> int:
        """The boundary that `walk` reaches without limits; cheaper where nobody needs to know how many messages."""
        return self.walk(data, start, stop)[0]

    def too_long(self, what: str) -> FramingError:
        """The error for `what`, which is longer than a message may be."""
        return FramingError(f"{what}; the limit is {self.max_message_bytes} bytes (--max-message-bytes)")


class Terminated(Framing):
    """Messages that end with a byte that no payload holds."""

    def __init__(self, name: str, terminator: bytes, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self.name = name
        self.terminator = terminator

    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """See `Framing.walk`. Searches and counts at memory speed; never visits messages one by one without need."""
        if until is not None and until < stop:
            if until <= start:
                return start, 0
            # The first boundary at or behind `until` ends with a terminator at until - 1 or later.
            found = data.find(self.terminator, until - 1, stop)
            if found >= 0:
                stop = found + 1
                if most == NO_LIMIT and stop - start <= self.max_message_bytes:
                    return stop, self._count(data, start, stop)  # too short for a message that is too long
        if most != NO_LIMIT:
            return self._skip(data, start, stop, most)
        boundary = self.reach(data, start, stop)
        return boundary, self._count(data, start, boundary)

    def _count(self, data: Buffer, start: int, stop: int) -> int:
        """How many terminators there are.

        CPython counts at 2.5 to 4 GB/s, however many there are; it removes them at memory speed where they are few.
        """
        if stop - start > 4 * PROBE_BYTES and data.count(self.terminator, start, start + PROBE_BYTES) <= FEW:
            piece = data[start:stop]
            return len(piece) - len(piece.replace(self.terminator, b""))
        return data.count(self.terminator, start, stop)

    def _skip(self, data: Buffer, start: int, stop: int, most: int) -> tuple[int, int]:
        longest = self.max_message_bytes
        if most > 4 and stop - start <= min(longest, SPLIT_BYTES):
            # Nothing in here is too long: one split is faster than a search for each message.
            rest = data[start:stop].split(self.terminator, most)
            return stop - len(rest[-1]), len(rest) - 1
        boundary, count = start, 0
        while count < most:
            found = data.find(self.terminator, boundary, min(stop, boundary + longest))
            if found < 0:
                break
            boundary = found + 1
            count += 1
        return boundary, count

    def reach(self, data: Buffer, start: int, stop: int) -> int:
        """See `Framing.reach`."""
        longest = self.max_message_bytes
        boundary = start
        # Where no message may span what is left, the last terminator in reach is a boundary that all before it
        # lead up to. A few jumps, however many messages.
        while stop - boundary > longest:
            found = data.rfind(self.terminator, boundary, boundary + longest)
            if found < 0:
                return boundary
            boundary = found + 1
        return max(boundary, data.rfind(self.terminator, boundary, stop) + 1)

    def missing(self, data: Buffer, start: int, stop: int) -> int:
        """See `Framing.missing`."""
        longest = self.max_message_bytes
        if stop - start >= longest and data.find(self.terminator, start, start + longest) < 0:
            raise self.too_long(f"a message of {stop - start} bytes or more without its terminator ({self.name})")
        return 1

    def payloads(self, data: Buffer, start: int, stop: int) -> list[bytes]:
        """See `Framing.payloads`."""
        if start == stop:
            return []
        return bytes(data[start : stop - 1]).split(self.terminator)

    def wrap(self, payload: bytes) -> bytes:
        """See `Framing.wrap`."""
        if self.terminator in payload:
            raise FramingError(f"the payload holds the terminator of {self.name} framing; choose a length prefix")
        if len(payload) >= self.max_message_bytes:
            raise self.too_long(f"a message of {len(payload) + 1} bytes")
        return payload + self.terminator


class FixedPrefix(Framing):
    """Messages behind a length of fixed width."""

    def __init__(self, name: str, layout: str, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self.name = name
        self._prefix = struct.Struct(layout)
        self._payload_limit = min(max_message_bytes - self._prefix.size, (1 << 8 * self._prefix.size) - 1)

    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """See `Framing.walk`. One unpack a message."""
        width, unpack, longest = self._prefix.size, self._prefix.unpack_from, self.max_message_bytes
        readable = stop - width + 1  # a prefix that begins here or later is not whole
        until = readable if until is None or until > readable else until
        boundary, count = start, 0
        while boundary < until and count < most:
            end = boundary + width + unpack(data, boundary)[0]
            if end > stop or end - boundary > longest:
                break
            boundary = end
            count += 1
        return boundary, count

    def missing(self, data: Buffer, start: int, stop: int) -> int:
        """See `Framing.missing`."""
        width = self._prefix.size
        if stop - start < width:
            return width - (stop - start)
        size: int = width + self._prefix.unpack_from(data, start)[0]
        if size > self.max_message_bytes:
            raise self.too_long(f"a {self.name} prefix announces a message of {size} bytes")
        return max(1, start + size - stop)

    def payloads(self, data: Buffer, start: int, stop: int) -> list[bytes]:
        """See `Framing.payloads`."""
        width, unpack = self._prefix.size, self._prefix.unpack_from
        found = []
        data = bytes(data)  # no copy of bytes; slices of it are bytes
        while start < stop:
            begin = start + width
            start = begin + unpack(data, start)[0]
            found.append(data[begin:start])
        return found

    def wrap(self, payload: bytes) -> bytes:
        """See `Framing.wrap`."""
        if len(payload) > self._payload_limit:
            raise FramingError(f"a payload of {len(payload)} bytes; {self.name} carries {self._payload_limit} at most")
        return self._prefix.pack(len(payload)) + payload


class Varint(Framing):
    """Messages behind an unsigned LEB128 length: seven bits a byte, the lowest first, the top bit for "more"."""

    name = "varint"

    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """See `Framing.walk`."""
        until = stop if until is None or until > stop else until
        longest = self.max_message_bytes
        boundary, count = start, 0
        while boundary < until and count < most:
            first = data[boundary]
            if first < 0x80:
                end = boundary + 1 + first
            else:
                begin, length = _read_varint(data, boundary, stop)
                if begin <= 0:
                    break
                end = begin + length
            if end > stop or end - boundary > longest:
                break
            boundary = end
            count += 1
        return boundary, count

    def missing(self, data: Buffer, start: int, stop: int) -> int:
        """See `Framing.missing`."""
        begin, length = _read_varint(data, start, stop)
        if begin == _MALFORMED:
            raise FramingError(f"no varint: more than {VARINT_MAX_BYTES} bytes, or more than 64 bits")
        if begin == _INCOMPLETE:
            return 1
        size = begin + length - start
        if size > self.max_message_bytes:
            raise self.too_long(f"a varint prefix announces a message of {size} bytes")
        return max(1, start + size - stop)

    def payloads(self, data: Buffer, start: int, stop: int) -> list[bytes]:
        """See `Framing.payloads`."""
        found = []
        data = bytes(data)
        while start < stop:
            begin, length = _read_varint(data, start, stop)
            start = begin + length
            found.append(data[begin:start])
        return found

    def wrap(self, payload: bytes) -> bytes:
        """See `Framing.wrap`."""
        length, prefix = len(payload), bytearray()
        while length >= 0x80:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        if len(prefix) + len(payload) > self.max_message_bytes:
            raise self.too_long(f"a message of {len(prefix) + len(payload)} bytes")
        return bytes(prefix) + payload


_INCOMPLETE: Final = -1
_MALFORMED: Final = -2


def _read_varint(data: Buffer, start: int, stop: int) -> tuple[int, int]:
    """Where the payload begins and how long it is; or `_INCOMPLETE` or `_MALFORMED`, and 0."""
    length = shift = 0
    for position in range(start, min(stop, start + VARINT_MAX_BYTES)):
        byte = data[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (_MALFORMED, 0) if length >> 64 else (position + 1, length)
        shift += 7
    return (_INCOMPLETE, 0) if stop - start < VARINT_MAX_BYTES else (_MALFORMED, 0)


def make_framing(name: str, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> Framing:
    """The framing called `name`, one of `FRAMINGS`.

    `max_message_bytes`: how long a message may be, its terminator or prefix included (at least 1 byte).
    Raises `ValueError` for a name that is none.
    """
    if name == "newline":
        return Terminated(name, b"\n", max_message_bytes)
    if name == "nul":
        return Terminated(name, b"\0", max_message_bytes)
    if name == "varint":
        return Varint(max_message_bytes)
    layouts = {"u16be": ">H", "u32be": ">I", "u32le": "<I"}
    if name not in layouts:
        raise ValueError(f"no framing is called {name!r}; there are {', '.join(FRAMINGS)}")
    return FixedPrefix(name, layouts[name], max_message_bytes)
