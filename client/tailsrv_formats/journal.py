"""The format of the journal. All numbers are little-endian and unsigned.

    header, 64 bytes
        0   8  "tsrvjrn1"
        8  16  random, so that no two journals are equal
       24  16  the boot in which it was written (random/boot_id of Linux); zeros if unknown
       40  16  the framing of the stream, padded with zeros
       56   1  --sync: 0 always, 1 interval, 2 never
       57   3  zeros
       60   4  CRC-32 of these 60 bytes
    record
        0   4  bytes of the body
        4   4  CRC-32 of the body; its initial value is the header's CRC-32
        8      body
    body
        0   8  start: the offset in FILE of the bytes of the commit
        8   8  end: the offset after them, and the length of FILE
       16   8  synced: FILE and this journal are durable up to this offset
       24   4  CRC-32 of the bytes from start to end
       28   4  number of producers that follow by number
       32   4  number of producers that follow by name
       36      by number, 20 bytes each: number 4, ACKED 8, AT 8
               by name: length 1, name, ACKED 8, AT 8; they are numbered from 0 in the order in which they appear

The first record replaces all records before it: it covers the last bytes of FILE at that time (a sample that shows
whether the journal belongs to FILE), and it names every producer. Each later commit begins where the one before it
ended. Zeros follow the last record; they are written beforehand, so that a record overwrites blocks that exist.

An invalid record that no valid one follows is the torn end that a crash leaves. An invalid record that was durable
when a later record was written is damage, and so is an invalid header. A length is checked against the size of the
journal before it is used.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC: Final = b"tsrvjrn1"
HEADER: Final = struct.Struct("<8s16s16s16sB3xI")
SYNCS: Final = ("always", "interval", "never")
FRAME: Final = struct.Struct("<II")
BODY: Final = struct.Struct("<QQQIII")
BY_NUMBER: Final = struct.Struct("<IQQ")
PROGRESS: Final = struct.Struct("<QQ")
_BEGINNING: Final = struct.Struct("<IIQQQIII")
"""Frame and body of a record, up to its producers."""
_SHORTEST_NAMED: Final = 2 + PROGRESS.size


class JournalError(ValueError):
    """The journal is damaged in a way that no crash causes."""


class Header(msgspec.Struct, frozen=True):
    """The header: the identity of the journal and of its stream."""

    ident: bytes
    boot: bytes
    framing: str
    sync: str
    """One of `SYNCS`."""

    def encode(self) -> bytes:
        """The header's 64 bytes."""
        packed = HEADER.pack(MAGIC, self.ident, self.boot, self.framing.encode("ascii"), SYNCS.index(self.sync), 0)[:-4]
        return packed + zlib.crc32(packed).to_bytes(4, "little")


class Record(msgspec.Struct):
    """One commit, without its producers."""

    start: int
    end: int
    synced: int
    crc: int


class Journal(msgspec.Struct):
    """The valid content of a journal."""

    header: Header
    records: list[Record]
    positions: list[int]
    """The offset in the journal at which each record ends."""
    torn: int = 0
    """The length of the torn end: bytes after the last record up to the last one that is not zero."""


def seed(header: bytes) -> int:
    """The initial value of the checksums of a journal with this header."""
    return int.from_bytes(header[60:64], "little")


def encode_named(name: bytes, acked: int, at: int) -> bytes:
    """Encode the progress of a producer by its name (1 to 128 bytes)."""
    return bytes((len(name),)) + name + PROGRESS.pack(acked, at)


def encode_record(seeded: int, record: Record, numbered: Iterable[bytes], named: Iterable[bytes]) -> bytes:
    """Encode a record; `numbered` and `named` are its encoded producers."""
    numbered, named = list(numbered), list(named)
    body = b"".join(
        (
            BODY.pack(record.start, record.end, record.synced, record.crc, len(numbered), len(named)),
            *numbered,
            *named,
        )
    )
    return FRAME.pack(len(body), zlib.crc32(body, seeded)) + body


def decode_header(data: bytes) -> Header:
    """Decode the header of a journal. Raises `JournalError` if it is invalid or of another version."""
    if len(data) < HEADER.size:
        raise JournalError(f"the journal has {len(data)} bytes, fewer than its header ({HEADER.size})")
    magic, ident, boot, framing, sync, crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise JournalError("bad magic: not a journal")
    if crc != zlib.crc32(data[: HEADER.size - 4]) or sync >= len(SYNCS):
        raise JournalError("the header of the journal is damaged")
    return Header(ident, boot, framing.rstrip(b"\0").decode("ascii", "replace"), SYNCS[sync])


def decode(data: bytes, boot: bytes = b"") -> Journal:
    """Decode a whole journal. `boot`: the identifier of the present boot.

    Raises `JournalError` for damage. Within the boot that wrote the journal no written record can be missing, so any
    valid record after an invalid one proves damage. After a power cut, only a record that states the invalid one to be
    durable proves it.
    """
    header = decode_header(data)
    seeded = seed(data)
    journal = Journal(header, [], [])
    position, end = HEADER.size, 0
    while True:
        record, after = _record_at(data, position, seeded)
        if record is None or (journal.records and record.start != end) or record.end < record.start:
            break
        journal.records.append(record)
        journal.positions.append(after)
        position, end = after, record.end
    if not journal.records:
        raise JournalError(f"the first record of the journal, at byte {position}, is damaged")
    rest = data[position:]
    torn = len(rest.rstrip(b"\0"))
    if torn:
        journal.torn = torn
        same_boot = header.boot == boot and bool(boot.strip(b"\0"))
        later = _later_record(data, position, seeded, end, same_boot=same_boot)
        if later is not None:
            raise JournalError(
                f"the record at byte {position} of the journal is damaged, but a later one at byte {later} is valid"
            )
    return journal


def producers(data: bytes, journal: Journal, count: int) -> dict[bytes, tuple[int, int]]:
    """The ACKED and AT of every producer after the first `count` records."""
    names: list[bytes] = []
    progress: list[tuple[int, int]] = []
    position = HEADER.size
    for after in journal.positions[:count]:
        *_, numbered, named = BODY.unpack_from(data, position + FRAME.size)
        position += FRAME.size + BODY.size
        split = position + numbered * BY_NUMBER.size
        for number, acked, at in BY_NUMBER.iter_unpack(memoryview(data)[position:split]):
            progress[number] = acked, at
        position = split
        for _ in range(named):
            begin = position + 1
            position = begin + data[position]
            names.append(data[begin:position])
            progress.append(PROGRESS.unpack_from(data, position))
            position += PROGRESS.size
        position = after
    return dict(zip(names, progress, strict=True))


def _record_at(data: bytes, position: int, seeded: int) -> tuple[Record | None, int]:
    """The record at `position`, and its end; None without a valid record."""
    begin = position + FRAME.size
    if begin + BODY.size > len(data):
        return None, position
    length, crc = FRAME.unpack_from(data, position)
    if length < BODY.size or length > len(data) - begin:
        return None, position
    if zlib.crc32(memoryview(data)[begin : begin + length], seeded) != crc:
        return None, position
    start, end, synced, covered, _, _ = BODY.unpack_from(data, begin)
    return Record(start, end, synced, covered), begin + length


def _later_record(data: bytes, position: int, seeded: int, end: int, *, same_boot: bool) -> int | None:
    """The offset after `position` of a valid record that proves the one at `position` to be damaged; None without one.

    A record may begin at any byte. The pattern skips bytes at which no record can begin, ten times faster than a test
    of each. The fields of a candidate are checked before its checksum is computed.
    """
    last = len(data.rstrip(b"\0"))
    largest = len(data) - position
    # The remaining bytes limit the highest byte of the length and of the two counts; offsets are below 2**63.
    high = b"[\\x00-\\x%02x]" % min(0xFF, largest >> 24)
    begins = re.compile(
        b"(?s)(?=.{3}%b.{11}[\\x00-\\x7f].{7}[\\x00-\\x7f].{7}[\\x00-\\x7f].{7}%b.{3}%b)" % (high, high, high)
    )
    for match in begins.finditer(data, position + 1):
        begin = match.start()
        if begin >= last:
            break
        length, _, start, stop, synced, _, numbered, named = _BEGINNING.unpack_from(data, begin)
        if (
            end <= start <= stop
            and synced <= stop
            and BODY.size + BY_NUMBER.size * numbered + _SHORTEST_NAMED * named <= length <= largest
            and (same_boot or synced > end)
            and _record_at(data, begin, seeded)[0] is not None
        ):
            return begin
    return None
