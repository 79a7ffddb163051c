"""The stream FILE, as its only writer sees it.

Every append is checked against its expected offset: a line that another program appends while the collator runs would
shift all offsets that producers receive. The collator notices such foreign bytes before a consumer can see them
(`ForeignBytesError`). They are rescued (rescue.py) together with our bytes after them, and ours are written again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from typing import TYPE_CHECKING, Final

from collator.obstacles import obstacle
from tailsrv_formats.errors import reason
from tailsrv_runtime.directory import Directory, sync_failed
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import GONE, MODE, append, lock

if TYPE_CHECKING:
    from collator.batch_builder import Piece

OPEN_TRIES: Final = 100
"""Attempts to open FILE while another program replaces it before it is locked."""


class ForeignBytesError(Exception):
    """FILE has bytes of another program at the offset of our next append."""

    def __init__(self, start: int) -> None:
        super().__init__(f"foreign bytes at byte {start}")
        self.start = start


class StreamFile:
    """FILE, open for appending and locked, and its directory, from construction to `close`."""

    def __init__(self, path: str) -> None:
        """Open or create `path`. Raises `FatalError` if it cannot be written, is no regular file, or has a writer.

        Raises `OSError` at an obstacle (see obstacles.py). It may wait for the disk, so it must not run in the loop.
        """
        self.path = path
        self.name = os.path.basename(path)
        self.directory = self._open_directory()
        try:
            self.fd = self._open_locked()
        except BaseException:
            self.directory.close()
            raise
        self.end = os.fstat(self.fd).st_size
        """The offset of the next append."""

    def _open_directory(self) -> Directory:
        try:
            return Directory(self.path)
        except OSError as error:
            if obstacle(error) is not None:
                raise
            raise self._unwritable(error) from None

    def _open_locked(self) -> int:
        """Open and lock FILE, then check its name: two collators that start at once must open the same file."""
        for _ in range(OPEN_TRIES):
            try:
                fd = self._open()
            except FileExistsError:
                continue  # another process has just created it
            except IsADirectoryError:
                raise self._not_regular() from None
            except OSError as error:
                if obstacle(error) is not None:
                    raise
                raise self._unwritable(error) from None
            try:
                self._lock(fd)
                if not is_other(fd, self.path):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise FatalError(
            f"cannot open {self.path}: another program keeps replacing it ({OPEN_TRIES} attempts); stop that program"
        )

    def _lock(self, fd: int) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise self._not_regular()
        lock(fd, self.path)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: never wait at a FIFO
        with contextlib.suppress(FileNotFoundError):
            return os.open(self.path, flags)
        fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, MODE)  # O_EXCL does not follow a symbolic link
        try:
            self.directory.sync()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _not_regular(self) -> FatalError:
        return FatalError(
            f"cannot write {self.path}: it is not a regular file; name a regular file, or one that does not exist yet"
        )

    def _unwritable(self, error: OSError) -> FatalError:
        return FatalError(
            f"cannot write {self.path}: {reason(error)}; its directory must exist and be writable for this user"
        )

    def size(self) -> int:
        """The length of FILE in bytes."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def evict(self, start: int) -> None:
        """Drop the page cache from `start` on: after a failed sync it may hold bytes that are not on the disk.

        The bytes before `start` stay cached for consumers.
        """
        os.posix_fadvise(self.fd, start - start % resource.getpagesize(), 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make the content and the size of the file durable. Raises `OSError`, or `SyncFailedError`.

        After a failed writeback the kernel also forgets that the inode is dirty: a sync then succeeds although the size
        is not on the disk. Setting the times to their present values makes the inode dirty again.
        """
        found = os.fstat(self.fd)
        os.utime(self.fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise sync_failed(self.path, error) from None

    def append(self, pieces: list[Piece]) -> None:
        """Append all of `pieces`, and remove the written ones from the list.

        Raises `OSError` if the file system takes no more, and `ForeignBytesError` if another program has appended; a
        further call continues. Raises `FatalError` if FILE became shorter.
        """
        while pieces:
            self.expect_end(self.size())
            begin = self.end
            written = append(self.fd, pieces)
            # With O_APPEND, the position is now after our last byte, wherever that is.
            if os.lseek(self.fd, 0, os.SEEK_CUR) != begin + written:
                self.expect_end(self.size())
                continue
            self.end = begin + written
            _advance(pieces, written)

    def expect_end(self, size: int) -> None:
        """Compare the size of FILE with its expected end."""
        if size < self.end:
            raise FatalError(
                f"{self.path} was truncated to {size} bytes although {self.end} bytes are committed; find the program"
                " that truncated it: only the collator may write this file"
            )
        if size > self.end:
            raise ForeignBytesError(self.end)

    def is_gone(self) -> bool:
        """Whether its name does not mean this file any more."""
        return is_other(self.fd, self.path)

    def close(self) -> None:
        """Close the file, which releases its lock, and the directory."""
        os.close(self.fd)
        self.directory.close()


def is_other(fd: int, path: str, directory: Directory | None = None) -> bool:
    """Whether `path` certainly means no file, or another file than `fd`."""
    try:
        found = os.stat(path, dir_fd=None if directory is None else directory.fd)
    except OSError as error:
        return error.errno in GONE
    return not os.path.samestat(os.fstat(fd), found)


def _advance(pieces: list[Piece], written: int) -> None:
    """Remove the first `written` bytes of `pieces`."""
    done = 0
    for piece in pieces:
        if len(piece) > written:
            break
        written -= len(piece)
        done += 1
    del pieces[:done]
    if written:
        pieces[0] = memoryview(pieces[0])[written:]
