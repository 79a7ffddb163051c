"""The stream FILE as its one writer sees it.

Every append is checked against where it must stand: a line that somebody appends by hand while the collator runs
would shift everything that producers are told. Such bytes are noticed before anybody has seen them
(`ForeignBytesError`), are moved aside (rescue.py), with what of ours came to stand after them, and then ours are
written again.
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
"""How often FILE is opened again because its name came to mean another file before it was locked."""


class ForeignBytesError(Exception):
    """FILE has bytes where the next one of ours must stand."""

    def __init__(self, start: int) -> None:
        super().__init__(f"foreign bytes at byte {start}")
        self.start = start


class StreamFile:
    """FILE, open for appending and locked, and its directory, from construction to `close`."""

    def __init__(self, path: str) -> None:
        """Open or create `path`. Raises `FatalError` when it can't be written, is no file, or has a writer.

        Raises `OSError` when something is short: descriptors, space. May take a moment: not for the loop.
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
        """Where the next byte has to stand."""

    def _open_directory(self) -> Directory:
        try:
            return Directory(self.path)
        except OSError as error:
            if obstacle(error) is not None:
                raise
            raise self._unwritable(error) from None

    def _open_locked(self) -> int:
        """FILE, locked, and certainly the file that the name means: two that start at once agree on one."""
        for _ in range(OPEN_TRIES):
            try:
                fd = self._open()
            except FileExistsError:
                continue  # another one creates it at this moment
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
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # not to wait at a FIFO
        with contextlib.suppress(FileNotFoundError):
            return os.open(self.path, flags)
        fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, MODE)  # O_EXCL follows no link
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
        """How many bytes FILE holds."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def evict(self, start: int) -> None:
        """Let the next read from `start` on ask the disk: after a failed sync, the page cache shows what is not there.

        What lies before stays cached: consumers read it.
        """
        os.posix_fadvise(self.fd, start - start % resource.getpagesize(), 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make all that the file holds durable, its size too. Raises `OSError`, or `SyncFailedError`.

        When a writeback fails, the kernel forgets that the inode was to be written as well: a sync then succeeds and
        the size is not on the disk. Setting the times to what they are makes the inode worth writing again.
        """
        found = os.fstat(self.fd)
        os.utime(self.fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise sync_failed(self.path, error) from None

    def append(self, pieces: list[Piece]) -> None:
        """Append all of `pieces`, and remove from the list what is written.

        Raises `OSError` when the file system takes no more, and `ForeignBytesError` when somebody else has appended;
        a further call goes on from there. Raises `FatalError` when FILE became shorter.
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
        """Compare FILE's size with where it must end."""
        if size < self.end:
            raise FatalError(
                f"{self.path} was truncated to {size} bytes although {self.end} bytes are committed; find the program"
                " that truncated it: only the collator may write this file"
            )
        if size > self.end:
            raise ForeignBytesError(self.end)

    def is_gone(self) -> bool:
        """Whether the name no longer means the file that we write."""
        return is_other(self.fd, self.path)

    def close(self) -> None:
        """Close the file, which gives its lock back, and the directory."""
        os.close(self.fd)
        self.directory.close()


def is_other(fd: int, path: str, directory: Directory | None = None) -> bool:
    """Whether `path` means no file, or another one than `fd` is, as far as can be told."""
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
