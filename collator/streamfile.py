"""The stream FILE as its one writer sees it.

Every append is checked against where it must stand: a line that somebody appends by hand while the collator runs
would shift everything that producers are told. Such bytes are moved aside to FILE.rescued-…, with what of ours came to
stand behind them, before anybody has seen them; then ours are written again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import time
from typing import TYPE_CHECKING, Final

from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.files import MODE, append, lock, open_beside, sync_directory

if TYPE_CHECKING:
    from collator.gather import Piece

COPY_BYTES: Final = 1 << 20


class StreamFile:
    """FILE, open for appending and locked, from construction to `close`."""

    def __init__(self, path: str) -> None:
        """Open or create `path`. Raises `FatalError` when it can't be written, is no file, or has a writer."""
        self.path = path
        try:
            self.fd = self._open()
        except IsADirectoryError:
            raise FatalError(f"{path} is not a regular file; a stream is a file that grows") from None
        except OSError as error:
            raise FatalError(
                f"cannot write {path}: {reason(error)}; its directory has to exist and be writable for this user"
            ) from None
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise FatalError(f"{path} is not a regular file; a stream is a file that grows")
        try:
            lock(self.fd, path)
        except FatalError:
            os.close(self.fd)
            raise
        self.end = os.fstat(self.fd).st_size
        """Where the next byte has to stand."""

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # not to wait at a FIFO
        with contextlib.suppress(FileNotFoundError):
            return os.open(self.path, flags)
        fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, MODE)  # O_EXCL follows no link
        sync_directory(self.path)
        return fd

    def size(self) -> int:
        """How many bytes FILE holds."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def evict(self, start: int) -> None:
        """Let the next read from `start` on ask the disk: after a failed sync, the page cache shows what is not there.

        What lies before stays cached: consumers read it.
        """
        os.posix_fadvise(self.fd, start - start % resource.getpagesize(), 0, os.POSIX_FADV_DONTNEED)

    def settle(self) -> None:
        """Make all that the file holds durable, its size too. Raises `OSError`.

        When a writeback fails, the kernel forgets that the inode was to be written as well: a sync then succeeds and
        the size is not on the disk. Setting the times to what they are makes the inode worth writing again.
        """
        found = os.fstat(self.fd)
        os.utime(self.fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        os.fsync(self.fd)

    def append(self, pieces: list[Piece]) -> None:
        """Append all of `pieces`, and remove from the list what is written.

        Raises `OSError` when the file system takes no more; a further call goes on from there. Raises `FatalError`
        when FILE became shorter.
        """
        while pieces:
            self._expect(self.size())
            begin = self.end
            written = append(self.fd, pieces)
            # With O_APPEND, the position is now behind our last byte, wherever that is.
            if os.lseek(self.fd, 0, os.SEEK_CUR) != begin + written:
                self._expect(self.size())
                continue
            self.end = begin + written
            _advance(pieces, written)

    def _expect(self, size: int) -> None:
        if size < self.end:
            raise FatalError(
                f"{self.path} was truncated to {size} bytes while {self.end} were committed; one process writes a"
                " file: find who did it"
            )
        if size > self.end:
            self.foreign(self.end, size)

    def foreign(self, start: int, size: int) -> None:
        """Bytes beyond the end that we did not write: set them aside. Replaced by whoever wants to tell of it."""
        self.rescue(start, size)

    def rescue(self, start: int, size: int) -> str:
        """Move the bytes from `start` to `size` out of FILE, into a file of their own; that file's path."""
        name = f"{self.path}.rescued-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{start}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        number, path = 0, name
        while True:
            try:
                fd = open_beside(path, flags)
                break
            except FileExistsError:
                number += 1
                path = f"{name}.{number}"
        try:
            position = start
            while position < size:
                position += _write_all(fd, os.pread(self.fd, min(COPY_BYTES, size - position), position))
            os.fsync(fd)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        sync_directory(path)
        os.ftruncate(self.fd, start)
        self.end = start
        return path

    def is_gone(self) -> bool:
        """Whether the name no longer means the file that we write."""
        ours = os.fstat(self.fd)
        try:
            return not os.path.samestat(ours, os.stat(self.path))
        except OSError:
            return True

    def close(self) -> None:
        """Give the file and its lock back."""
        os.close(self.fd)


def _write_all(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)


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
