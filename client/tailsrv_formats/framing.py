"""Framings: where a message begins and ends.

A stream is a sequence of messages without gaps, each with its terminator or its length prefix. A framing finds the
boundaries between them: it takes bytes and returns boundaries. It knows no sockets, files or clocks, keeps no state
between calls, and copies nothing. "More bytes needed" is a value; `FramingError` is raised only for bytes that no
further byte can turn into a message.

| name               | a message is                                             | source                            |
| ------------------ | -------------------------------------------------------- | --------------------------------- |
| newline, nul       | payload, then the terminator, which no payload contains  | text files; ``xargs -0``          |
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
"""The names that `make_framing` accepts; the first is the default."""

DEFAULT_MAX_MESSAGE_BYTES: Final = 1 << 20
"""The default limit of a collator, and also that of Kafka and NATS."""

NO_LIMIT: Final = 1 << 62
"""More messages than a file can hold, for a `walk` without a limit on their number."""

VARINT_MAX_BYTES: Final = 10
"""A 64-bit number in groups of seven bits: protobuf's limit."""

PROBE_BYTES: Final = 256
FEW: Final = 5
"""Up to this many terminators in `PROBE_BYTES` (messages of 50 bytes or more), removing is faster than counting."""

SPLIT_BYTES: Final = 1 << 14
"""Up to this size in bytes, the copies of a split cost less than they save."""

Buffer = bytes | bytearray
"""The types that framings read. They have search methods, and a memoryview has none."""


class FramingError(TailsrvError, ValueError):
    """The bytes at a boundary cannot become a message: too long, or an invalid length."""


class Framing(ABC):
    """Finds message boundaries. Stateless; one instance serves any number of streams and threads."""

    name: str
    terminator: bytes = b""
    """The byte that completes an unfinished message; empty for length prefixes, where nothing can."""

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self.max_message_bytes = max_message_bytes

    @abstractmethod
    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """Step over whole messages, from the boundary `start`, within ``data[:stop]``.

        Stops at the first boundary at or after `until` (default: `stop`, so at the last boundary), after `most`
        messages, or before the first message that is incomplete or invalid. Returns the boundary reached and the number
        of messages stepped over.
        """

    @abstractmethod
    def missing(self, data: Buffer, start: int, stop: int) -> int:
        """The least number of bytes that complete the message that begins at `start` and ends after `stop`.

        Raises `FramingError` if no bytes can complete it: so a caller finds out why `walk` stopped.
        """

    @abstractmethod
    def payloads(self, data: Buffer, start: int, stop: int) -> list[bytes]:
        """The payloads of the whole messages in ``data[start:stop]``; both must be boundaries."""

    @abstractmethod
    def wrap(self, payload: bytes) -> bytes:
        """The message that carries `payload`. Raises `FramingError` if none can: too long, or it has the terminator."""

    def reach(self, data: Buffer, start: int, stop: int) -> int:
        """The boundary that `walk` reaches without limits; faster, because it need not count messages."""
        return self.walk(data, start, stop)[0]

    def too_long(self, what: str) -> FramingError:
        """The error for `what`, which is longer than a message may be."""
        return FramingError(f"{what}; the limit is {self.max_message_bytes} bytes (--max-message-bytes)")


class Terminated(Framing):
    """Messages that end with a byte that no payload contains."""

    def __init__(self, name: str, terminator: bytes, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self.name = name
        self.terminator = terminator

    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """See `Framing.walk`. Searches and counts at memory speed, and visits single messages only for `most`."""
        if until is not None and until < stop:
            if until <= start:
                return start, 0
            # The first boundary at or after `until` ends with a terminator at until - 1 or later.
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
        """The number of terminators.

        CPython counts at 2.5 to 4 GB/s whatever their number; it removes them at memory speed if they are few.
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
    """Messages after a length of fixed width."""

    def __init__(self, name: str, layout: str, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self.name = name
        self._prefix = struct.Struct(layout)
        self._payload_limit = min(max_message_bytes - self._prefix.size, (1 << 8 * self._prefix.size) - 1)

    def walk(
        self, data: Buffer, start: int, stop: int, until: int | None = None, most: int = NO_LIMIT
    ) -> tuple[int, int]:
        """See `Framing.walk`. It costs one unpack for each message."""
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
    """Messages after an unsigned LEB128 length: seven bits a byte, lowest first; the top bit means that more follow."""

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
            raise FramingError(f"invalid varint: more than {VARINT_MAX_BYTES} bytes, or more than 64 bits")
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
    """The start and the length of the payload; or `_INCOMPLETE` or `_MALFORMED`, and 0."""
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

    `max_message_bytes`: the longest message in bytes, including its terminator or prefix (at least 1).
    Raises `ValueError` for an unknown name.
    """
    if name == "newline":
        return Terminated(name, b"\n", max_message_bytes)
    if name == "nul":
        return Terminated(name, b"\0", max_message_bytes)
    if name == "varint":
        return Varint(max_message_bytes)
    layouts = {"u16be": ">H", "u32be": ">I", "u32le": "<I"}
    if name not in layouts:
        raise ValueError(f"unknown framing {name!r}; choose one of {', '.join(FRAMINGS)}")
    return FixedPrefix(name, layouts[name], max_message_bytes)
