"""The index on the disk: one writer, appended to, searched where it lies.

Entries are found by bisection on a mapping of the file; nothing is read into memory but the latest, which are kept
until the next mapping, and those that the disk has no room for. Whether what was found is right is for the caller to
check against the stream (`holds`): here nothing is believed either, and nothing depends on it.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from indexer.format import ENTRY_BYTES, HEADER_BYTES, Entry, Header, Words, decode_entry, decode_header, unpack
from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.files import lock, open_beside, write_at

if TYPE_CHECKING:
    from collections.abc import Callable

ASIDE: Final = ".old"
"""What is put behind the name of an index that is set aside. One is kept: it is derived, and can be large."""

RECENT_BYTES: Final = 4096 * ENTRY_BYTES
"""So many of the latest entries are kept in memory before the mapping is renewed."""

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
        self.count = 0
        """How many entries there are."""
        self.trouble: str | None = None
        """Why entries can't be written at the moment."""
        self._map: mmap.mmap | None = None
        self._mapped = 0  # entries in the mapping
        self._recent = bytearray()  # the entries behind those
        self._written = 0  # bytes of these that are in the file
        self._fd = _open(self.path)
        try:
            lock(self._fd, self.path)
        except FatalError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Give back the file, and the lock with it."""
        self._unmap()
        os.close(self._fd)

    # --- beginning

    def is_empty(self) -> bool:
        """Whether the file holds nothing at all."""
        return self.size() == 0

    def load(self) -> bool:
        """Take up what the file holds. False when that is no index. A torn last entry is cut off."""
        self.header = decode_header(os.pread(self._fd, HEADER_BYTES, 0))
        if self.header is None:
            return False
        self._truncate((self.size() - HEADER_BYTES) // ENTRY_BYTES)
        return True

    def cut(self, count: int) -> None:
        """Forget all entries but the first `count`, or fewer: those that are not written yet are forgotten, too."""
        self._truncate(min(count, self._mapped + self._written // ENTRY_BYTES))

    def _truncate(self, count: int) -> None:
        os.ftruncate(self._fd, HEADER_BYTES + count * ENTRY_BYTES)
        self.count = count
        self._remap()

    def begin(self, header: Header) -> None:
        """Make it an index without entries."""
        self.header = header
        self.trouble = None
        try:
            write_at(self._fd, header.encode(), 0)
            self._truncate(0)
        except OSError as error:
            # Looked into again with the next entries; until then the index is what memory holds.
            self._unmap()
            self._recent.clear()
            self.count = self._written = 0
            self.trouble = reason(error)

    def set_aside(self) -> str:
        """Rename the file, and open a new, empty one in its place. Returns the old one's new name."""
        aside = self.path + ASIDE
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            pass  # somebody was faster; what is open here is as good as gone
        except OSError as error:
            raise FatalError(f"cannot rename {self.path}: {reason(error)}; make its directory writable") from None
        self.close()
        self._open()
        return aside

    # --- writing

    def append(self, packed: bytes) -> None:
        """Add entries. What the disk has no room for is kept; see `trouble` and `is_full`."""
        self._recent += packed
        self.count += len(packed) // ENTRY_BYTES
        self.flush()

    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._fd).st_size

    def is_full(self) -> bool:
        """Whether more entries would have to be kept in memory than is bearable."""
        return len(self._recent) - self._written > UNWRITTEN_BYTES

    def flush(self) -> None:
        """Write what is not written yet."""
        if self.header is None:
            raise ValueError("an index begins with a header")
        try:
            if self.trouble is not None:
                write_at(self._fd, self.header.encode(), 0)
            # What a full disk tore is written again from its beginning: only what was taken whole counts as written.
            offset = HEADER_BYTES + self._mapped * ENTRY_BYTES + self._written
            write_at(self._fd, bytes(self._recent[self._written :]), offset)
        except OSError as error:
            self.trouble = reason(error)
            return
        self.trouble = None
        self._written = len(self._recent)
        if self._written >= RECENT_BYTES:
            self._remap()

    def identify(self, header: Header) -> None:
        """Write a header that says more about the same index; one write, so that it is never half."""
        self.header = header
        try:
            write_at(self._fd, header.encode(), 0)
        except OSError as error:
            self.trouble = reason(error)

    # --- searching

    def is_intact(self) -> bool:
        """Whether the file still holds what is mapped: reading the mapping of a file that was cut is deadly."""
        return self.size() >= HEADER_BYTES + self._mapped * ENTRY_BYTES

    def words(self, position: int) -> Words:
        """An entry as it is stored, 0 ≤ position < count."""
        if position < self._mapped:
            begin = HEADER_BYTES + position * ENTRY_BYTES
            return unpack(self._map[begin : begin + ENTRY_BYTES])  # type: ignore[index]  # mapped: there is a map
        begin = (position - self._mapped) * ENTRY_BYTES
        return unpack(self._recent[begin : begin + ENTRY_BYTES])

    def entry(self, position: int) -> Entry:
        """What an entry says; the one before the first is the beginning of the stream."""
        if position < 0:
            return Entry(0, 0, 0 if self.header is None else self.header.created, exact=False)
        return decode_entry(self.words(position))

    def find_number(self, number: int) -> int:
        """The position of the last entry at or before message `number`; -1 where there is none."""
        return self._find(number, NUMBER)

    def find_offset(self, offset: int) -> int:
        """The position of the last entry at or before the byte `offset`; -1 where there is none."""
        return self._find(offset, OFFSET)

    def find_time(self, time: int) -> int:
        """The position of the last entry before `time`; -1 where there is none."""
        return bisect_left(range(self.count), time, key=lambda position: self.entry(position).time) - 1

    def _find(self, value: int, field: slice) -> int:
        """Bisect, in the neighbourhood of where the entry would be if all messages were equally long."""
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
        begin, end = HEADER_BYTES + field.start, HEADER_BYTES + field.stop
        mapping, mapped, recent, number = self._map, self._mapped, self._recent, int.from_bytes

        def key(position: int) -> int:
            at = position * ENTRY_BYTES
            if position < mapped:
                return number(mapping[begin + at : end + at], "big")  # type: ignore[index]  # mapped: there is a map
            at -= mapped * ENTRY_BYTES
            return number(recent[field.start + at : field.stop + at], "big")

        return key

    # --- the mapping

    def _remap(self) -> None:
        self._unmap()
        if self.count:
            size = HEADER_BYTES + self.count * ENTRY_BYTES
            self._map = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self._mapped = self.count
        self._recent.clear()
        self._written = 0

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
        self._map, self._mapped = None, 0


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
