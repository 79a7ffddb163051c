"""What the producers send: streams whose every byte follows from seed, producer and sequence number.

So a file can be judged alone: loss, repetition, tearing and reordering are all decidable from its bytes.
A message's payload opens with its producer's tag, its sequence number, its size and a digest; a shorter
payload is that header cut off, and a payload of no bytes is known by counting. Knows the framings by its own
reading of the protocol and imports nothing of the product, which it is there to judge.
"""

from __future__ import annotations

import bisect
import hashlib
import random
import struct
from typing import Final

TAGS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
HEADER_BYTES: Final = 38
LARGEST: Final = 70_000
FRAMINGS: Final = ("newline", "nul", "u16be", "u32be", "u32le", "varint")
_EDGES: Final = (0, 1, 2, 37, 38, 39, 127, 128, 4095, 4096, 16_383, 16_384, 65_535, LARGEST)
_RANDOM_BYTES: Final = random.Random(20_230_612).randbytes(2 * LARGEST)
_TEXT: Final = _RANDOM_BYTES.translate(bytes(33 + (value % 94) for value in range(256)))


def frame(framing: str, payload: bytes) -> bytes:
    """Give the message that stands in the file for `payload`: with its terminator or its length prefix."""
    match framing:
        case "newline":
            return payload + b"\n"
        case "nul":
            return payload + b"\0"
        case "u16be":
            return struct.pack(">H", len(payload)) + payload
        case "u32be":
            return struct.pack(">I", len(payload)) + payload
        case "u32le":
            return struct.pack("<I", len(payload)) + payload
        case "varint":
            prefix = bytearray()
            left = len(payload)
            while left > 127:
                prefix.append(left & 127 | 128)
                left >>= 7
            prefix.append(left)
            return bytes(prefix) + payload
    raise ValueError(f"{framing!r} is not a framing")


def next_payload(framing: str, data: bytes, at: int) -> tuple[int, int, int] | None:
    """Find the message at `at`: where its payload starts and ends and where the next message starts.

    None when the bytes end before the message does.
    """
    match framing:
        case "newline" | "nul":
            end = data.find(b"\n" if framing == "newline" else b"\0", at)
            return None if end < 0 else (at, end, end + 1)
        case "varint":
            length = shift = 0
            start = at
            while start < len(data):
                byte = data[start]
                length |= (byte & 127) << shift
                shift += 7
                start += 1
                if byte < 128:
                    break
            else:
                return None
        case _:
            layout = {"u16be": ">H", "u32be": ">I", "u32le": "<I"}[framing]
            start = at + struct.calcsize(layout)
            if start > len(data):
                return None
            (length,) = struct.unpack_from(layout, data, at)
    return None if start + length > len(data) else (start, start + length, start + length)


class Stream:
    """The endless stream of one producer, addressed by sequence number or by byte.

    `size`: every payload has that many bytes (50 or more) instead of 0 to LARGEST.
    """

    def __init__(self, number: int, framing: str, *, seed: int = 0, size: int | None = None) -> None:
        self.name = f"producer-{number}"
        self.framing = framing
        self.tag = TAGS[number] if number < len(TAGS) else f"<{number}>"
        self._seed = f"{seed}/{number}"
        self._sizes = random.Random(self._seed)
        self._size = size
        self._payload_sizes: list[int] = []
        self._ends: list[int] = []

    def _grow(self, count: int) -> None:
        while len(self._ends) < count:
            size = self._draw() if self._size is None else self._size
            if self.framing == "u16be":
                size = min(size, 65_535)
            overhead = 1 if self.framing in ("newline", "nul") else len(frame(self.framing, bytes(size))) - size
            self._payload_sizes.append(size)
            self._ends.append((self._ends[-1] if self._ends else 0) + size + overhead)

    def _draw(self) -> int:
        """Draw a size: mostly log lines, now and then nothing, an edge of some buffer, or tens of kilobytes."""
        kind = self._sizes.random()
        if kind < 0.05:
            return self._sizes.choice(_EDGES)
        if kind < 0.10:
            return self._sizes.randrange(HEADER_BYTES + 2)
        if kind < 0.75:
            return self._sizes.randrange(40, 400)
        if kind < 0.95:
            return self._sizes.randrange(400, 6_000)
        return self._sizes.randrange(6_000, LARGEST + 1)

    def payload(self, sequence: int) -> bytes:
        """Give message `sequence` (from 0) without its framing."""
        self._grow(sequence + 1)
        size = self._payload_sizes[sequence]
        digest = hashlib.blake2b(f"{self._seed}/{sequence}/{size}".encode(), digest_size=8)
        header = f"{self.tag}.{sequence:010d}.{size:06d}.{digest.hexdigest()} .".encode()
        if size <= len(header):
            return header[:size]
        pool = _TEXT if self.framing in ("newline", "nul") else _RANDOM_BYTES
        start = int.from_bytes(digest.digest()[:4], "big") % LARGEST
        return header + pool[start : start + size - len(header)]

    def message(self, sequence: int) -> bytes:
        """Give message `sequence` as it stands in the file."""
        return frame(self.framing, self.payload(sequence))

    def end(self, sequence: int) -> int:
        """Give the byte of the stream right behind message `sequence`."""
        self._grow(sequence + 1)
        return self._ends[sequence]

    def is_empty(self, sequence: int) -> bool:
        """Whether message `sequence` carries no bytes, and so can be told from others only by counting."""
        self._grow(sequence + 1)
        return self._payload_sizes[sequence] == 0

    def is_named(self, sequence: int) -> bool:
        """Whether message `sequence` is long enough to carry its whole header."""
        self._grow(sequence + 1)
        return self._payload_sizes[sequence] >= HEADER_BYTES

    def count_upto(self, offset: int) -> int | None:
        """How many messages the first `offset` bytes are; None when that is no message boundary."""
        if offset == 0:
            return 0
        while not self._ends or self._ends[-1] < offset:
            self._grow(len(self._ends) + 64)
        index = bisect.bisect_left(self._ends, offset)
        return index + 1 if self._ends[index] == offset else None

    def count_above(self, offset: int) -> int:
        """How many messages, one at least, cover the first `offset` bytes."""
        self._grow(1)
        while self._ends[-1] < offset:
            self._grow(len(self._ends) + 64)
        return bisect.bisect_left(self._ends, offset) + 1

    def read(self, start: int, end: int) -> bytes:
        """Give the stream's bytes from `start` to `end`."""
        self._grow(1)
        while self._ends[-1] < end:
            self._grow(len(self._ends) + 64)
        first = bisect.bisect_right(self._ends, start)
        skipped = start - (self._ends[first - 1] if first else 0)
        parts = []
        sequence, have = first, start - skipped
        while have < end:
            parts.append(self.message(sequence))
            have = self._ends[sequence]
            sequence += 1
        return b"".join(parts)[skipped : skipped + end - start]
