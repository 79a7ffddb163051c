"""The directory of a stream, and files that take the place of others in it.

The directory is opened once: names in it are made and synced by its descriptor, which needs no further one, and goes
on being right when the directory is moved. A new file has a temporary name until it is complete and durable; a crash
leaves the old file or the new one, and at most the temporary name, which `sweep` removes.
"""

from __future__ import annotations

import contextlib
import os

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import MODE, write_at


class SyncFailedError(FatalError):
    """The disk did not take what the kernel had accepted."""


def sync_failed(path: str, error: OSError) -> SyncFailedError:
    """The error for a sync of `path` that failed: nothing may be retried after it, whatever its number."""
    return SyncFailedError(
        f"cannot sync {path}: {reason(error)}; nothing more is acknowledged; check the disk, then start the collator"
        " again (it reads back what the disk holds)"
    )


class Directory:
    """The directory that holds the stream at `path`. Raises `OSError` where it can't be opened."""

    def __init__(self, path: str) -> None:
        self.path = os.path.dirname(path) or "."
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Make its names durable. Raises `SyncFailedError`."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise sync_failed(self.path, error) from None

    def sweep(self, prefix: str) -> None:
        """Remove the temporary names of files that begin with `prefix`; their writer's lock must be held."""
        for entry in os.listdir(self.fd):
            if entry.startswith(f".{prefix}."):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry, dir_fd=self.fd)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class NewFile:
    """A file that takes the place of `name`, or comes to nothing."""

    def __init__(self, directory: Directory, name: str) -> None:
        """Create it under its temporary name, never through a link. Raises `OSError`."""
        self._directory = directory.fd
        self._name = name
        self._temporary = f".{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, MODE, dir_fd=self._directory)

    def put(self, content: bytes) -> int:
        """Write `content`, make it durable, and give it the name: whoever sees the file sees all of it.

        Returns its descriptor, which is the caller's. The name is durable once the directory is synced. Raises
        `OSError`, and then there is no new file.
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
        """Let it come to nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
