"""The index on the disk: one writer, appended to, searched in place.

A search reads some entries at each step, by pread. (Not by a mapping: reading a mapped page that the disk can't read,
or that was cut off, is a SIGBUS and ends the process.) Only entries that the disk has no room for are kept in memory.
The caller compares what was found with the stream: here, an entry's numbers are only compared, never trusted.

Entries may be ahead of the stream: a commit mark goes back if a power cut has taken its last moves. These entries stay
in the file, unused, and `adopt` uses them again, one by one, when the stream gets there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from indexer.errors import CorruptIndexError, IndexFileError
from indexer.search import NUMBER, OFFSET, TIME, Bracket, search
from tailsrv_formats.errors import reason
from tailsrv_formats.index_file import (
    ENTRY_BYTES,
    HEADER_BYTES,
    MAGIC,
    RAW_FIELDS,
    Entry,
    Header,
    Words,
    decode_entry,
    decode_header,
    holds,
    unpack,
)
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import lock, open_beside, write_at
from tailsrv_runtime.shortage import spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Sequence

UNWRITTEN_BYTES: Final = 1 << 20
"""The most memory for entries that could not be written; with more, indexing waits."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_ADVICE: Final = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f, LimitFSIZE=)",
    errno.EBUSY: "stop the other process, or move away what is at that path",
    errno.EEXIST: "move away what is at that path",
    errno.EIO: "check the disk",
    errno.EROFS: "mount the file system for writing",
}
_KIND: Final = MAGIC[:-1]  # without the version


class IndexFile:
    """The index at `path`, locked. It is written and searched after `load` or `begin`."""

    def __init__(self, path: str, header: Header) -> None:
        """Open or create it, and become its one writer. `header` is that of a new index. Raises `FatalError`.

        If there is no room to create it, it is created later, with the first entries that can be written.
        """
        self.path = path
        self.header = header
        """What the file says about itself, or will say when it can be written."""
        self._fd = -1
        self._forget()
        try:
            self._fd = _open(path)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise FatalError(f"cannot open the index {path}: {reason(error)}; {_advice_to_open(error)}") from None
            self._note_write_error(error)

    def _forget(self) -> None:
        self.count = 0
        """How many entries are in use."""
        self.write_error: str | None = None
        """Why entries can't be written at the moment; None if they can."""
        self.advice = ""
        """What an operator can do about `write_error`."""
        self._stored = 0  # entries in the file, those ahead included
        self._unwritten = bytearray()  # entries that follow those; while there are any, none is ahead

    def close(self) -> None:
        """Close the file, and release the lock with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Its descriptor; -1 until it can be created."""
        return self._fd

    # --- beginning

    def is_empty(self) -> bool:
        """Whether the file holds nothing at all."""
        return self.size() == 0

    def is_index(self) -> bool:
        """Whether the file begins as an index does, damaged or not."""
        return self._read(0, len(_KIND)) == _KIND

    def load(self) -> bool:
        """Use the entries of the file, but for a torn last one. Returns False if it is not an index."""
        header = decode_header(self._read(0, HEADER_BYTES))
        if header is None:
            return False
        self.header = header
        self._stored = (self.size() - HEADER_BYTES) // ENTRY_BYTES
        self.cut(self._stored)
        return True

    def begin(self, header: Header, *, durable: bool = False) -> None:
        """Make it an index without entries. `durable`: its header is on the disk before this returns."""
        self._forget()
        self.header = header
        try:
            self._create()
            os.ftruncate(self._fd, 0)
            write_at(self._fd, header.encode(), 0)
            if durable:
                os.fdatasync(self._fd)
        except OSError as error:
            # The next write tries again; until then the entries are in memory.
            self._note_write_error(error)

    def _create(self) -> None:
        """Make sure that there is a file."""
        if self._fd >= 0:
            return
        fd = _open_again(self.path)
        if os.fstat(fd).st_size:
            os.close(fd)
            raise OSError(errno.EEXIST, "a file has appeared in its place", self.path)
        self._fd = fd

    def set_aside(self, aside: str | None, *, at_start: bool) -> str | None:
        """Rename the file to `aside`, which does not exist yet, and use an empty one. Returns `aside`.

        If `aside` is None, or the file can't be renamed, its content is dropped, and None is returned: the index is
        derived, and a daemon that serves goes on. But `at_start`, a file that can't be renamed raises `FatalError`.
        A file that has lost its name meanwhile stays as it is, and None is returned.
        """
        self._forget()
        if self._fd < 0 or not self._is_named():
            self.close()  # `begin` makes another one
            return None
        if aside is None:
            return None
        try:
            os.rename(self.path, aside)
        except OSError as error:
            if at_start:
                text = f"cannot rename {self.path} to {aside}: {reason(error)}; make its directory writable"
                raise FatalError(text) from None
            return None
        try:
            fd = _open_again(self.path)
        except OSError:
            with contextlib.suppress(OSError):  # else its content is dropped under the name that it has now
                os.rename(aside, self.path)
            return None
        self.close()
        self._fd = fd
        return aside

    def _is_named(self) -> bool:
        """Whether the path still means this file."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self.path))
        except OSError:
            return False

    # --- writing

    def append(self, packed: bytes) -> None:
        """Add entries. Those that can't be written are kept in memory; see `write_error` and `is_full`."""
        self.drop_ahead()
        self._unwritten += packed
        self.count += len(packed) // ENTRY_BYTES
        self.flush()

    def size(self) -> int:
        """Size of the file, in bytes."""
        return os.fstat(self._fd).st_size if self._fd >= 0 else 0

    def is_full(self) -> bool:
        """Whether more than `UNWRITTEN_BYTES` of entries could not be written."""
        return len(self._unwritten) > UNWRITTEN_BYTES

    def flush(self) -> None:
        """Write the entries that are kept in memory."""
        end = HEADER_BYTES + self._stored * ENTRY_BYTES
        try:
            if self.write_error is not None:
                self._create()
                write_at(self._fd, self.header.encode(), 0)
                self._shorten(end)
            # After a short write, all of it is written again: entries count as written only if all were.
            write_at(self._fd, bytes(self._unwritten), end)
        except OSError as error:
            self._note_write_error(error)
            return
        self.write_error = None
        self._stored += len(self._unwritten) // ENTRY_BYTES
        self._unwritten.clear()

    def identify(self, header: Header) -> None:
        """Replace the header by one that says more about the same index, in one write."""
        self.header = header
        try:
            self._create()
            write_at(self._fd, header.encode(), 0)
        except OSError as error:
            self._note_write_error(error)

    def overwrite(self, position: int, packed: bytes) -> None:
        """Replace the entry at `position`. Raises `IndexFileError`."""
        if position < self._stored:
            try:
                write_at(self._fd, packed, HEADER_BYTES + position * ENTRY_BYTES)
            except OSError as error:
                raise IndexFileError(error.errno, reason(error), self.path) from None
        else:
            begin = (position - self._stored) * ENTRY_BYTES
            self._unwritten[begin : begin + ENTRY_BYTES] = packed

    def cut(self, count: int) -> None:
        """Drop all entries but the first `count`, those ahead too."""
        if count < self._stored:
            self._stored = count
            self._unwritten.clear()
        else:
            del self._unwritten[(count - self._stored) * ENTRY_BYTES :]
        self.count = count
        try:
            self._shorten(HEADER_BYTES + self._stored * ENTRY_BYTES)
        except OSError as error:
            self._note_write_error(error)

    def _shorten(self, size: int) -> None:
        if self.size() > size:
            os.ftruncate(self._fd, size)

    def _note_write_error(self, error: OSError) -> None:
        self.write_error = reason(error)
        self.advice = _ADVICE.get(error.errno or 0, "make it and its directory writable")

    # --- entries that are ahead of the stream

    @property
    def ahead(self) -> int:
        """How many entries are ahead of the stream: they follow those that are in use."""
        return max(0, self._stored - self.count)

    def retract(self, count: int) -> None:
        """Use no more than the first `count` entries. Those in the file stay there, as entries ahead."""
        if count < self._stored:
            self._unwritten.clear()
        else:
            del self._unwritten[(count - self._stored) * ENTRY_BYTES :]
        self.count = count

    def restore(self) -> None:
        """Use all entries that there are."""
        self.count = max(self.count, self._stored)

    def adopt(self, raw: Sequence[int]) -> tuple[int, Entry | None]:
        """Use the entries ahead that equal these raw ones. Returns how many do, and the last one of them.

        At the first one that differs, the stream is not what it was: all entries ahead are dropped.
        """
        adopted, last = 0, None
        for at in range(0, len(raw), RAW_FIELDS):
            if not self.ahead:
                break
            number, offset, fingerprint = raw[at : at + RAW_FIELDS]
            try:
                words = self._words(self.count)
            except (CorruptIndexError, IndexFileError):
                words = (0, 0, 0)
            if words[0] >> 16 != number or words[1] != offset or not holds(words, fingerprint):
                self.drop_ahead()
                break
            self.count += 1
            adopted, last = adopted + 1, decode_entry(words)
        return adopted, last

    def drop_ahead(self) -> None:
        """Drop the entries that are not in use."""
        if self.ahead:
            self.cut(self.count)

    # --- searching

    def words(self, position: int, count: int = 1) -> tuple[Words, ...]:
        """Some entries as they are stored, 0 ≤ position, position + count ≤ `self.count`.

        Raises `CorruptIndexError` if the file is shorter, `IndexFileError`.
        """
        packed = self._packed(position, count)
        return tuple(unpack(packed[at : at + ENTRY_BYTES]) for at in range(0, len(packed), ENTRY_BYTES))

    def entry(self, position: int) -> Entry:
        """An entry; position -1 is the beginning of the stream. Raises as `words` does."""
        if position < 0:
            return Entry(0, 0, self.header.created, exact=False)
        return decode_entry(self._words(position))

    def find_number(self, number: int, end: int) -> Bracket:
        """The last entry at or before message `number` of `end` messages, and the next one."""
        return self._find(number << 16 | 0xFFFF, 0, end << 16, NUMBER)

    def find_offset(self, offset: int, end: int) -> Bracket:
        """The last entry at or before the byte `offset` of `end` bytes, and the next one."""
        return self._find(offset, 0, end, OFFSET)

    def find_time(self, time: int, end: int) -> Bracket:
        """The last entry before `time`, and the next one. `end`: about the time of the last entry."""
        return self._find(time - 1, self.header.created, end, TIME)

    def at(self, position: int) -> Bracket:
        """The entry at `position`, -1 or more, and the next one. Raises as `words` does."""
        begin, end = max(0, position), min(position + 2, self.count)
        words = self.words(begin, end - begin) if begin < end else ()
        return Bracket(position, words[0] if position >= 0 else None, words[-1] if position + 1 < self.count else None)

    def _find(self, value: int, first: int, last: int, word: int) -> Bracket:
        found = search(self._packed, self.count, value, first=first, last=last, word=word)
        return self.at(found) if isinstance(found, int) else found

    def _words(self, position: int) -> Words:
        return unpack(self._packed(position, 1))

    def _packed(self, position: int, count: int) -> bytes:
        """The bytes of some entries."""
        inside = self._stored - position
        inside = count if inside > count else max(0, inside)
        packed = self._read(HEADER_BYTES + position * ENTRY_BYTES, inside * ENTRY_BYTES) if inside else b""
        if len(packed) < inside * ENTRY_BYTES:
            raise CorruptIndexError("the index was cut while it was in use", position)
        if inside == count:
            return packed
        begin = (position + inside - self._stored) * ENTRY_BYTES
        return packed + self._unwritten[begin : begin + (count - inside) * ENTRY_BYTES]

    def _read(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise IndexFileError(error.errno, reason(error), self.path) from None


def _open(path: str) -> int:
    """Open and lock the file. Raises `OSError`; `FatalError` if it is not a file, or another process has it."""
    fd = open_beside(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FatalError(f"the index {path} is not a regular file; choose another path with --index")
    try:
        lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_again(path: str) -> int:
    """Open the file again while the daemon serves: another file at that path keeps the index in memory.

    Raises `OSError`.
    """
    try:
        with spare_descriptors():
            return _open(path)
    except FatalError as error:
        raise OSError(errno.EBUSY, str(error), path) from None


def _advice_to_open(error: OSError) -> str:
    return {
        errno.ELOOP: "the index is never opened through a symbolic link: name its target with --index",
        errno.ENOENT: "create its directory, or choose another path with --index",
    }.get(error.errno or 0, "make it and its directory writable, or choose another path with --index")
