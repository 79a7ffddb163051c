r"""The file of a spool, format 2: what a producer has accepted and the collator has not acknowledged.

    tailsrv-spool 2 NAME FRAMING SEED CRC32\n   SEED: a random number of this file; CRC-32 of the line before it; both 8
                                                hexadecimal digits
    BASE CRC32\n                                where byte 0 of the file's messages is in the producer's stream: 20
    BASE CRC32\n                                digits, 20 dashes while it is not known; CRC-32 of them, begun with SEED
    record record …

    record = LENGTH CRC CHECK messages          three big-endian numbers of 4 bytes, then LENGTH bytes: the whole
                                                messages of one `append`, as they are sent

CRC is the CRC-32 of the messages. CHECK is the CRC-32 of LENGTH and CRC, begun with SEED + the record's place in the
file: a record from another file or another offset is invalid. So three cases differ, as in etcd's wal:

- a clean end: the file ends with a record;
- a torn end: the file ends within the last record, whose CHECK is right or which is shorter than that; or nothing but
  zeros follows, which a power cut can leave. An `append` that returned is never torn by a kill. It is not read;
- corruption: everything else. `CheckpointError` names the file and the byte, and the file is left as it is.

LENGTH is believed when CHECK is right and the file is long enough, and only then memory is allocated for it.

BASE is written twice, the second one first, each durable before the next: one damaged line does not hide it, and a
crash between the two leaves the old state or the new one.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from typing import Final, NamedTuple

from tailsrv_client.durable_files import write_at
from tailsrv_client.errors import CheckpointError

MAGIC: Final = b"tailsrv-spool 2 "
MAGIC_1: Final = b"tailsrv-spool 1 "
HEADER_BYTES: Final = 256
"""No first line is longer."""

BASE_BYTES: Final = 30
RECORD: Final = struct.Struct(">III")
LARGEST_RECORD: Final = 0xFFFFFFFF
CHUNK_BYTES: Final = 1 << 18
"""How much is read at once."""

MARK_BYTES: Final = 1 << 16
"""A place is remembered for each such stretch of the file: 4,096 of them for 256 MiB."""

_UNKNOWN: Final = b"-" * 20
_MASK: Final = 0xFFFFFFFF
_pack: Final = RECORD.pack
_pack_head: Final = struct.Struct(">II").pack


class Header(NamedTuple):
    """The first line, and how long it is."""

    version: int
    name: str
    framing: str
    seed: int
    base: int | None
    size: int


class DamagedError(Exception):
    """The record at byte `at` of the file is none: `what`."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at = at


def encode_header(name: str, framing: str, seed: int, base: int | None) -> bytes:
    """What a file begins with."""
    line = MAGIC + b"%s %s %08x" % (name.encode(), framing.encode(), seed)
    return line + b" %08x\n" % zlib.crc32(line) + 2 * encode_base(base, seed)


def encode_base(base: int | None, seed: int) -> bytes:
    """One of the two lines that say where the file's first message is."""
    digits = _UNKNOWN if base is None else b"%020d" % base
    return digits + b" %08x\n" % zlib.crc32(digits, seed)


def decode_header(head: bytes) -> Header:
    """What the beginning of a file says. Raises `CheckpointError`."""
    line = head[: head.find(b"\n", 0, HEADER_BYTES) + 1]
    body, _, crc = line.removesuffix(b"\n").rpartition(b" ")
    magic, fields = body[: len(MAGIC)], body[len(MAGIC) :].split(b" ")
    if not line or magic not in {MAGIC, MAGIC_1} or crc != b"%08x" % zlib.crc32(body) or len(fields) != 3:
        raise CheckpointError("bad magic or checksum in the first line: not a spool, or damaged")
    name, framing = fields[0].decode(), fields[1].decode()
    if magic == MAGIC_1:
        return Header(1, name, framing, 0, None if fields[2] == _UNKNOWN else int(fields[2]), len(line))
    seed, size = int(fields[2], 16), len(line) + 2 * BASE_BYTES
    return Header(2, name, framing, seed, _decode_bases(head[len(line) : size], seed), size)


def _decode_bases(lines: bytes, seed: int) -> int | None:
    found = list[int | None]()
    for line in (lines[:BASE_BYTES], lines[BASE_BYTES:]):
        digits = line[:20]
        if line == digits + b" %08x\n" % zlib.crc32(digits, seed) and (digits == _UNKNOWN or digits.isdigit()):
            found.append(None if digits == _UNKNOWN else int(digits))
    if not found:
        raise CheckpointError("both BASE lines are damaged")
    known = {base for base in found if base is not None}
    if len(known) > 1:
        raise CheckpointError("its two BASE lines contradict each other")
    return known.pop() if known else None


def encode_record(messages: bytes, seed: int, at: int) -> bytes:
    """A record for byte `at` of the file."""
    length, crc = len(messages), zlib.crc32(messages)
    return _pack(length, crc, zlib.crc32(_pack_head(length, crc), (seed + at) & _MASK)) + messages


def parse(data: bytes, at: int, seed: int) -> tuple[list[memoryview], int, int]:
    """The messages of the whole records at the beginning of `data`, which is byte `at` on of the file.

    Returns them, how many bytes their records take, and how many the next record takes (0: its head is not in `data`).
    Raises `DamagedError`, for the first record only if that is it: what comes before it can be had first.
    """
    view = memoryview(data)
    crc32, unpack, size = zlib.crc32, RECORD.unpack_from, RECORD.size
    found = list[memoryview]()
    position, stop = 0, len(data)
    while stop - position >= size:
        length, crc, check = unpack(data, position)
        body = position + size
        if crc32(view[position : position + 8], (seed + at + position) & _MASK) != check:
            if found:
                break
            raise DamagedError(at + position, "no record begins there")
        if body + length > stop:
            return found, position, size + length
        messages = view[body : body + length]
        if crc32(messages) != crc:
            if found:
                break
            raise DamagedError(at + position, "its messages do not have their checksum")
        found.append(messages)
        position = body + length
    return found, position, 0


class SpoolFile:
    """An open file of records. A position counts bytes of messages; `first` is that of the file's first one.

    What lies before `end` is never changed, so it may be read while another thread appends.
    """

    def __init__(self, path: str, fd: int, seed: int, *, begin: int, first: int) -> None:
        self.path: str = path
        self.fd: int = fd
        self.seed: int = seed
        self.first: int = first
        self.begin = begin
        self.end: int = first
        self.size: int = begin
        """Where the next record goes."""
        self.torn: bool = False
        """Whether there may be something after `size`."""
        self._marks = [(first, begin)]

    def close(self) -> None:
        """Close it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def load(self) -> str | None:
        """Read all of it. Returns a description of a torn end, or None. Raises `CheckpointError`."""
        size = os.fstat(self.fd).st_size
        while True:
            try:
                pieces, consumed, following = self._parse(self.size, size)
            except DamagedError as error:
                if self._is_zero(size):
                    self.torn = True
                    return f"{size - self.size} bytes at its end were never written, as after a power cut"
                raise self._corrupt(error) from None
            if not consumed:
                break
            self.end += sum(map(len, pieces))
            self.size += consumed
            self._mark()
        self.torn = size > self.size
        if not self.torn:
            return None
        missing = f" of {following}" if following else ""
        return f"it ends with {size - self.size}{missing} bytes of a record that was never completed"

    def append(self, messages: bytes) -> None:
        """Add a record. Raises `OSError`; nothing of `messages` is kept then."""
        if len(messages) > LARGEST_RECORD:
            raise ValueError(f"a spool takes up to {LARGEST_RECORD} bytes at once, not {len(messages)}")
        if self.torn:
            os.ftruncate(self.fd, self.size)
        size = self.size
        record = encode_record(messages, self.seed, size)
        # Until it is complete, whatever ends this call (an error, a signal's exception), the next one cuts it off.
        self.torn = True
        written = os.pwrite(self.fd, record, size)
        while written < len(record):
            written += os.pwrite(self.fd, record[written:], size + written)
        self.size = size + written
        self.end += len(messages)
        self.torn = False
        if self.size - self._marks[-1][1] >= MARK_BYTES:
            self._mark()

    def repair(self) -> None:
        """Cut off what a failed `append` has left. Raises `OSError`; the next `append` tries again."""
        if self.torn:
            os.ftruncate(self.fd, self.size)
            self.torn = False

    def messages(self, position: int) -> tuple[int, bytes]:
        """Messages of whole records, up to about `CHUNK_BYTES`, the first of which holds byte `position`.

        Returns the position at which they begin, too. There has to be such a byte. Raises `CheckpointError`.
        """
        number = bisect_right(self._marks, (position, self.size)) - 1
        start, at = self._marks[number]
        while True:
            try:
                pieces, consumed, _ = self._parse(at, self.size)
            except DamagedError as error:
                raise self._corrupt(error) from None
            if not consumed:
                raise self._corrupt(DamagedError(at, "the file is shorter than it was"))
            data = b"".join(pieces)
            if start + len(data) > position:
                return start, data
            start += len(data)
            at += consumed

    def write_base(self, base: int) -> None:
        """Say durably that the file's first message is at `base` of the producer's stream. Raises `OSError`."""
        line = encode_base(base, self.seed)
        for offset in (self.begin - BASE_BYTES, self.begin - 2 * BASE_BYTES):
            write_at(self.fd, line, offset)
            os.fdatasync(self.fd)

    def _parse(self, at: int, size: int) -> tuple[list[memoryview], int, int]:
        """`parse` for byte `at` on, of a file of `size` bytes: at least one record, if there is a whole one."""
        data = os.pread(self.fd, min(CHUNK_BYTES, size - at), at)
        pieces, consumed, following = parse(data, at, self.seed)
        if not pieces and len(data) < following <= size - at:
            data = os.pread(self.fd, following, at)
            pieces, consumed, following = parse(data, at, self.seed)
        return pieces, consumed, following

    def _mark(self) -> None:
        self._marks.append((self.end, self.size))

    def _is_zero(self, size: int) -> bool:
        """Whether nothing but zeros follows the last record."""
        at = self.size
        while at < size:
            data = os.pread(self.fd, min(CHUNK_BYTES, size - at), at)
            if not data or data.count(0) < len(data):
                return False
            at += len(data)
        return True

    def _corrupt(self, error: DamagedError) -> CheckpointError:
        return CheckpointError(
            f"the spool {self.path} is damaged at byte {error.at}: {error}. It was left as it is, and no more of it is"
            f" sent. Restore it from a copy, or keep what comes before the damage: truncate -s {error.at} {self.path}"
        )
