"""Directories, and new files that take the place of old ones in them, atomically and durably.

A directory is opened once. Its files are then created, renamed and made durable through its descriptor, which needs no
further descriptors and stays valid when the directory is moved. A new file has a temporary name until it is complete
and durable. A crash leaves the old file or the new one, and at most a temporary file, which `Directory.sweep` removes.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import Final

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import MODE, write_at

TEMPORARY_NAME_BYTES: Final = 200
"""A longer name is shortened for the temporary file, whose name must not exceed NAME_MAX either."""


class SyncFailedError(FatalError):
    """The disk did not take what the kernel had accepted."""


def sync_failed(path: str, error: OSError) -> SyncFailedError:
    """The error for a failed sync of `path`. No step may be retried after it, whatever its error number."""
    return SyncFailedError(
        f"cannot sync {path}: {reason(error)}; nothing more is acknowledged; check the disk, then start the daemon"
        " again (it reads back what the disk holds)"
    )


def temporary_name(name: str) -> str:
    """The name of the file `name` until it is complete and durable. One process at a time may write `name`."""
    encoded = os.fsencode(name)
    if len(encoded) > TEMPORARY_NAME_BYTES:
        return f".{os.fsdecode(encoded[:TEMPORARY_NAME_BYTES])}.{zlib.crc32(encoded):08x}.new"
    return f".{name}.new"


class Directory:
    """The directory that holds the file at `path`. Raises `OSError` if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self.path = os.path.dirname(path) or "."
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Make its names durable. Raises `SyncFailedError`."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise sync_failed(self.path, error) from None

    def sweep(self, name: str) -> None:
        """Remove the temporary files of `name`. The caller must hold the writer's lock."""
        for entry in os.listdir(self.fd):
            if entry == temporary_name(name) or entry.startswith(f".{name}."):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry, dir_fd=self.fd)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class NewFile:
    """A file that will replace `name`: `put` completes it, `discard` removes it."""

    def __init__(self, directory: Directory, name: str) -> None:
        """Create it under its temporary name, never through a symbolic link. Raises `OSError`.

        The kernel applies the umask to `MODE`. (mkstemp would give 0600. To widen that, a process would have to read
        its umask, which it can do only by setting it, and then other threads create files with any permissions.
        O_TMPFILE cannot be renamed over an existing file.)
        """
        self._directory = directory.fd
        self._name = name
        self._temporary = temporary_name(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, MODE, dir_fd=self._directory)

    def put(self, content: bytes) -> int:
        """Write `content`, make it durable, and rename the file to `name`: a reader sees all of it or nothing.

        Returns its descriptor, open for reading and writing, which the caller closes. The name is durable after
        `Directory.sync`. Raises `OSError`, and then there is no new file.
        """
        try:
            write_at(self._fd, content, 0)
            os.fdatasync(self._fd)
            os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            self.discard()
            raise
        fd, self._fd = self._fd, -1
        return fd

    def discard(self) -> None:
        """Remove it, unless it has been put."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):  # the error that matters is the first one
                os.unlink(self._temporary, dir_fd=self._directory)


def create_file(path: str, content: bytes) -> int:
    """Create or replace the file at `path`, as `NewFile.put` does. Returns its descriptor."""
    directory = Directory(path)
    try:
        return NewFile(directory, os.path.basename(path)).put(content)
    finally:
        directory.close()
