"""The index file: a header of 64 bytes, then entries of 24 bytes, in the order of the stream. All numbers big-endian.

    header   0  magic               8 bytes  "tailidx1": the format and its version
             8  framing             8 bytes  its name, filled up with zeros
            16  interval            8 bytes  N: the stream is divided into intervals of N bytes
            24  created             8 bytes  nanoseconds since 1970
            32  head length         4 bytes  how many of the stream's first bytes the CRC covers; 0: not yet known
            36  head CRC-32         4 bytes
            40  zeros              20 bytes
            60  CRC-32              4 bytes  of the header's bytes before it

    entry    0  number              6 bytes  how many messages are before `offset`: the number of the one that starts
             6  check               2 bytes  fingerprint XOR ((number + offset + last 8 bytes as a number) mod 65521)
             8  offset              8 bytes  a message boundary, the first one of its interval
            16  time                8 bytes  nanoseconds since 1970, never less than the entry's before: by then all
                                             messages before `offset` were there. The top bit is set if no indexer
                                             saw them arrive: this is when they were indexed

The fingerprint of an offset is the CRC-16 of the (up to) 32 bytes of the stream before it; the CRC starts from the
CRC-16 of the header's first 32 bytes. So an entry is valid for this index and this stream only, and one that is torn,
has a flipped bit, or is left over from another file is detected: 65521 is prime, and no single bit is a multiple of it.
(A CRC over everything would take too long: counting the 4096 bytes of an entry takes a microsecond.) CRC-16 is the
CCITT polynomial 0x1021, not reflected; CRC-32 is zlib's.

There is no entry for offset 0, nor for an interval without a boundary (a message that spans it). Which entries there
are, and where, depends on the stream alone: an index that was built at once and one that grew differ only in times.

Pure: bytes in, values out.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from binascii import crc_hqx
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC: Final = b"tailidx1"
HEADER_BYTES: Final = 64
ENTRY_BYTES: Final = 24
CONTEXT_BYTES: Final = 32
"""How much of the stream before an entry's offset goes into its fingerprint."""

HEAD_BYTES: Final = 4096
"""How many of the stream's first bytes identify it; fewer with a smaller interval."""

RAW_FIELDS: Final = 3
"""A raw entry is three numbers in a row: number, offset, the offset's fingerprint."""

_HEADER: Final = struct.Struct(">8s8sQQII20x")
_SEEDED: Final = 32  # the bytes of the header that never change
_ENTRY: Final = struct.Struct(">QQQ")
NUMBER_SHIFT: Final = 16
"""An entry's first word is its number, shifted by this, and its check."""

TIME_MASK: Final = (1 << 63) - 1
"""The bits of an entry's last word that are its time."""

_INEXACT: Final = 1 << 63
_PRIME: Final = 65521


class Header(msgspec.Struct, frozen=True):
    """The header of an index."""

    framing: str
    interval: int
    """Bytes, at least 1."""
    created: int
    """Nanoseconds since 1970."""
    head_bytes: int = 0
    head_crc: int = 0

    def encode(self) -> bytes:
        """The header's bytes."""
        fields = _HEADER.pack(MAGIC, self.framing.encode(), self.interval, self.created, self.head_bytes, self.head_crc)
        return fields + zlib.crc32(fields).to_bytes(4, "big")

    def seed(self) -> int:
        """The CRC-16 that fingerprints of this index start from."""
        return crc_hqx(self.encode()[:_SEEDED], 0)


def decode_header(content: bytes) -> Header | None:
    """The header at the beginning of a file; None if it is torn, damaged or of another kind."""
    if len(content) < HEADER_BYTES:
        return None
    fields, crc = content[: HEADER_BYTES - 4], content[HEADER_BYTES - 4 : HEADER_BYTES]
    magic, framing, interval, created, head_bytes, head_crc = _HEADER.unpack(fields)
    if magic != MAGIC or zlib.crc32(fields).to_bytes(4, "big") != crc or interval < 1 or head_bytes > HEAD_BYTES:
        return None
    return Header(framing.rstrip(b"\0").decode("ascii", "replace"), interval, created, head_bytes, head_crc)


class Entry(NamedTuple):
    """The `number` messages before `offset` were there at `time`."""

    number: int
    offset: int
    time: int
    """Nanoseconds since 1970."""
    exact: bool
    """Whether the indexer saw them arrive; otherwise `time` is when they were indexed."""


fingerprint: Final = crc_hqx
"""``fingerprint(context, seed)``: of the offset after these (up to `CONTEXT_BYTES`) bytes."""


def encode_entries(raw: Sequence[int], time: int, *, exact: bool) -> bytes:
    """The bytes of raw entries that were found at the same time."""
    stamp = time if exact else time | _INEXACT
    words: list[int] = []
    for number, offset, printed in zip(raw[0::3], raw[1::3], raw[2::3], strict=True):
        words += (number << 16 | printed ^ (number + offset + stamp) % _PRIME, offset, stamp)
    return struct.pack(f">{len(words)}Q", *words)


Words = tuple[int, int, int]
"""An entry as it is stored: number and check, offset, time with its top bit."""


def unpack(packed: bytes | bytearray) -> Words:
    """The words of an entry's bytes."""
    return _ENTRY.unpack(packed)


def unpack_all(packed: bytes) -> Sequence[int]:
    """The words of several entries' bytes, in a row."""
    words = array("Q", packed)
    if sys.byteorder == "little":
        words.byteswap()
    return words


def decode_entry(words: Words) -> Entry:
    """The entry with these words, valid or not: see `holds`."""
    number, offset, stamp = words
    return Entry(number >> NUMBER_SHIFT, offset, stamp & TIME_MASK, stamp < _INEXACT)


def holds(words: Words, printed: int) -> bool:
    """Whether an entry is undamaged, and was made for an offset with this fingerprint."""
    number, offset, stamp = words
    return number & 0xFFFF == printed ^ ((number >> 16) + offset + stamp) % _PRIME
