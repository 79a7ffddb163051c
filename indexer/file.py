"""The index on the disk: one writer, appended to, searched where it is.

Entries are found by bisection in the file, with one small read for each step; nothing is kept in memory but the
entries that the disk has no room for. Whether what was found is right is for the caller to check against the stream
(`holds`): here no value is trusted, and nothing depends on one.

After a power cut the commit mark can be older than the index. Entries that lie beyond it are *early*: they stay in the
file, are not counted, and count again as soon as the stream has come that far and confirms them.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from indexer.format import (
    ENTRY_BYTES,
    HEADER_BYTES,
    MAGIC,
    RAW_FIELDS,
    Entry,
    Header,
    MismatchError,
    Words,
    decode_entry,
    decode_header,
    encode_entries,
    holds,
    unpack,
)
from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.files import lock, open_beside, write_at
from tailsrv.kit.shortage import spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESCUED: Final = ".old"
"""What is added to the name of an index that is set aside; further ones are called .old.1 and so on."""

COPIES: Final = 10
"""At most so many are kept. An index is derived from its stream and can be large; with this many copies something is
wrong that one more copy does not explain, and the next damaged index is emptied instead."""

UNWRITTEN_BYTES: Final = 1 << 20
"""Entries that wait for room on the disk take this much memory, then indexing waits."""

NUMBER: Final = slice(0, 6)
OFFSET: Final = slice(8, 16)


class IndexFile:
    """The index at `path`, locked. `header` is None until `begin`, or `load` where the file holds an index."""

    def __init__(self, path: str) -> None:
        """Open or create it, and become its one writer. Raises `FatalError`."""
        self.path = path
        self._open()

    def _open(self) -> None:
        self.header: Header | None = None
        self.trouble: str | None = None
        """Why entries can't be written at the moment."""
        self.probed: list[int] = []
        """The positions of the entries that the last searches have looked at."""
        self._written = 0  # entries in the file that count
        self._early = 0  # entries in the file behind those
        self._unwritten = bytearray()  # entries behind the written ones, if there are no early ones
        with spare_descriptors():
            self._fd = _open(self.path)
        try:
            lock(self._fd, self.path)
        except FatalError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Release the file, and the lock with it."""
        os.close(self._fd)

    @property
    def count(self) -> int:
        """How many entries count."""
        return self._written + len(self._unwritten) // ENTRY_BYTES

    # --- beginning

    def is_empty(self) -> bool:
        """Whether the file holds nothing at all."""
        return self.size() == 0

    def is_foreign(self) -> bool:
        """Whether the file holds something that does not begin as an index does."""
        return not self.is_empty() and os.pread(self._fd, len(MAGIC), 0) != MAGIC

    def load(self) -> bool:
        """Take up what the file holds. False when that is no index. A torn last entry is cut off."""
        self.header = decode_header(os.pread(self._fd, HEADER_BYTES, 0))
        if self.header is None:
            return False
        self._truncate((self.size() - HEADER_BYTES) // ENTRY_BYTES)
        return True

    def cut(self, count: int) -> None:
        """Forget all entries but the first `count`: early ones and those that are not written yet, too."""
        self._truncate(min(count, self._written))

    def shorten(self) -> None:
        """Forget the entries that the file has lost. Raises `MismatchError` where it has lost its header."""
        if decode_header(os.pread(self._fd, HEADER_BYTES, 0)) != self.header and self.trouble is None:
            raise MismatchError("the header of the index was damaged while it was in use")
        if not self.is_intact():
            self._truncate((self.size() - HEADER_BYTES) // ENTRY_BYTES)

    def hide(self, count: int) -> None:
        """Let the entries from position `count` on be early. There must be none that wait to be written."""
        if self._unwritten:
            self.cut(count)
        elif count < self._written:
            self._early += self._written - count
            self._written = count

    def _truncate(self, count: int) -> None:
        os.ftruncate(self._fd, HEADER_BYTES + count * ENTRY_BYTES)
        self._written, self._early = count, 0
        self._unwritten.clear()

    def begin(self, header: Header) -> None:
        """Make it an index without entries."""
        self.header = header
        self.trouble = None
        try:
            write_at(self._fd, header.encode(), 0)
            self._truncate(0)
        except OSError as error:
            # Looked into again with the next entries; until then the index is what memory holds.
            self._written = self._early = 0
            self._unwritten.clear()
            self.trouble = reason(error)

    def set_aside(self) -> str | None:
        """Rename the file, and open a new, empty one in its place.

        Returns the old one's new name; None when there are `COPIES` already, and it was emptied instead.
        """
        names = (self.path + RESCUED + (f".{number}" if number else "") for number in range(COPIES))
        free = next((name for name in names if not os.path.lexists(name)), None)
        if free is None:
            os.ftruncate(self._fd, 0)
            self.header = None
            self._truncate_to_nothing()
            return None
        try:
            os.rename(self.path, free)
        except FileNotFoundError:
            pass  # it was removed meanwhile; what is open here is as good as gone
        except OSError as error:
            raise FatalError(f"cannot rename {self.path}: {reason(error)}; make its directory writable") from None
        self.close()
        self._open()
        return free

    def _truncate_to_nothing(self) -> None:
        self._written = self._early = 0
        self._unwritten.clear()
        self.trouble = None

    # --- writing

    def append(self, raw: Sequence[int], time: int, *, exact: bool) -> None:
        """Add the entries of `raw` (number, offset and fingerprint of each), found at `time` in nanoseconds.

        Those that are there already, as early ones, are confirmed and keep their times. What the disk has no room for
        is kept; see `trouble` and `is_full`.
        """
        if self._early:
            raw = self._confirm(raw)
        self._unwritten += encode_entries(raw, time, exact=exact)
        self.flush()

    def _confirm(self, raw: Sequence[int]) -> Sequence[int]:
        """Let early entries count that are the same as the first ones of `raw`; what of `raw` is left."""
        done = 0
        while self._early and done < len(raw):
            number, offset, mark = raw[done : done + RAW_FIELDS]
            words = self._read(self._written)
            entry = decode_entry(words)
            if (entry.number, entry.offset) != (number, offset) or not holds(words, mark):
                self._truncate(self._written)  # the stream went on otherwise than it was read before
                break
            self._written += 1
            self._early -= 1
            done += RAW_FIELDS
        return raw[done:]

    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._fd).st_size

    def is_full(self) -> bool:
        """Whether more entries would have to be kept in memory than is bearable."""
        return len(self._unwritten) > UNWRITTEN_BYTES

    def flush(self) -> None:
        """Write what is not written yet."""
        if self.header is None:
            raise ValueError("an index begins with a header")
        if self._early or not (self._unwritten or self.trouble):
            return
        try:
            if self.trouble is not None:
                write_at(self._fd, self.header.encode(), 0)
            # What a full disk tore is written again from its beginning: only what was taken whole counts as written.
            write_at(self._fd, bytes(self._unwritten), HEADER_BYTES + self._written * ENTRY_BYTES)
        except OSError as error:
            self.trouble = reason(error)
            return
        self.trouble = None
        self._written += len(self._unwritten) // ENTRY_BYTES
        self._unwritten.clear()

    def identify(self, header: Header) -> None:
        """Write a header that says more about the same index; one write, so that it is never half."""
        self.header = header
        try:
            write_at(self._fd, header.encode(), 0)
        except OSError as error:
            self.trouble = reason(error)

    # --- searching

    def is_intact(self) -> bool:
        """Whether the file still holds all entries that were written."""
        return self.size() >= HEADER_BYTES + (self._written + self._early) * ENTRY_BYTES

    def _read(self, position: int) -> Words:
        packed = os.pread(self._fd, ENTRY_BYTES, HEADER_BYTES + position * ENTRY_BYTES)
        if len(packed) < ENTRY_BYTES:
            raise MismatchError("the index was cut while it was in use")
        return unpack(packed)

    def words(self, position: int) -> Words:
        """An entry as it is stored, 0 ≤ position < count. Raises `MismatchError` where the file was cut, `OSError`."""
        self.probed.append(position)
        if position < self._written:
            return self._read(position)
        begin = (position - self._written) * ENTRY_BYTES
        return unpack(self._unwritten[begin : begin + ENTRY_BYTES])

    def entry(self, position: int) -> Entry:
        """What an entry says; the one before the first is the beginning of the stream. Raises as `words`."""
        if position < 0:
            return Entry(0, 0, 0 if self.header is None else self.header.created, exact=False)
        return decode_entry(self.words(position))

    def find_number(self, number: int) -> int:
        """The position of the last entry at or before message `number`; -1 where there is none. Raises as `words`."""
        return self._find(number, NUMBER)

    def find_offset(self, offset: int) -> int:
        """The position of the last entry at or before the byte `offset`; -1 where there is none. Raises as `words`."""
        return self._find(offset, OFFSET)

    def find_time(self, time: int) -> int:
        """The position of the last entry before `time`; -1 where there is none. Raises as `words`."""
        self.probed.clear()
        return bisect_left(range(self.count), time, key=lambda position: self.entry(position).time) - 1

    def _find(self, value: int, field: slice) -> int:
        """Bisect, in the neighbourhood of where the entry would be if all messages were equally long."""
        self.probed.clear()
        count = self.count
        if not count:
            return -1
        key = self._key(field)
        guess = min(count - 1, value * count // (key(count - 1) + 1))
        low, high, step = guess, guess + 1, 2
        while low > 0 and key(low) > value:
            low, high, step = max(0, low - step), low, step * 4
        while high < count and key(high) <= value:
            low, high, step = high, min(count, high + step), step * 4
        return bisect_right(range(count), value, low, high, key=key) - 1

    def _key(self, field: slice) -> Callable[[int], int]:
        begin, size = HEADER_BYTES + field.start, field.stop - field.start
        fd, written, unwritten, number = self._fd, self._written, self._unwritten, int.from_bytes
        pread, note = os.pread, self.probed.append

        def key(position: int) -> int:
            note(position)
            at = position * ENTRY_BYTES
            if position < written:
                # A file that was cut gives a number that is too small, which the check of the cell finds.
                return number(pread(fd, size, begin + at), "big")
            at -= written * ENTRY_BYTES
            return number(unwritten[field.start + at : field.stop + at], "big")

        return key


def _open(path: str) -> int:
    try:
        fd = open_beside(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
    except OSError as error:
        advice = {
            errno.ELOOP: "it is a symbolic link, which is not followed: name the file itself with --index",
            errno.ENOENT: "its directory does not exist: create it, or choose another place with --index",
            errno.ENOSPC: "make room, or choose another place with --index",
        }.get(error.errno or 0, "make it and its directory writable, or choose another place with --index")
        raise FatalError(f"cannot open the index {path}: {reason(error)}; {advice}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FatalError(f"the index {path} is not a regular file; choose another place with --index")
    return fd
