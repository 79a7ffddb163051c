"""Files of the clients that survive a crash: replaced whole, durably, and used by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from tailsrv_client.errors import CheckpointError
from tailsrv_formats.errors import reason

MODE: Final = 0o640
"""Permissions of what is created, within the umask."""


def lock(path: str) -> int:
    """Become the one process that uses `path`, through ``PATH.lock``. Returns the descriptor that holds the lock.

    The lock is on a file of its own because `path` itself is replaced. Raises `CheckpointError`, `OSError`.
    """
    fd = _open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CheckpointError(f"{path} is in use by another process; one process may use it: stop the other") from None
    except OSError as error:
        os.close(fd)
        raise CheckpointError(f"cannot lock {path}: {reason(error)}; it needs a file system with flock") from None
    return fd


def begin(path: str, content: bytes) -> int:
    """Begin a file that is to replace `path`: ``PATH.new`` with `content`. Returns a descriptor of it.

    Its name is fixed, so that a killed process leaves at most one such file. The caller holds the lock.
    Raises `OSError`.
    """
    fd = _open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(fd, content, 0)
    except BaseException:
        os.close(fd)
        discard(path)
        raise
    return fd


def discard(path: str) -> None:
    """Remove what `begin` has begun: on a full disk it takes the space that is needed most."""
    with contextlib.suppress(OSError):  # the next `begin` overwrites it
        os.unlink(f"{path}.new")


def replace(path: str, content: bytes) -> int:
    """Make `content` the file's, atomically and durably. Returns a descriptor of it. The caller holds the lock.

    Raises `OSError`: the file then has the old content or the new one, and the new one may not survive a power cut.
    """
    fd = begin(path, content)
    try:
        try:
            os.fdatasync(fd)
            os.rename(f"{path}.new", path)
        except BaseException:
            discard(path)
            raise
        sync_directory(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_at(fd: int, content: bytes, offset: int) -> None:
    """Write all of `content` at `offset`. Raises `OSError` when the file system takes only part of it."""
    while content:
        written = os.pwrite(fd, content, offset)
        content = content[written:]
        offset += written


def sync_directory(path: str) -> None:
    """Make the names in the directory of `path` durable. Raises `OSError`."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open(path: str, flags: int) -> int:
    """Open without following a symbolic link, which another user may have created."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
