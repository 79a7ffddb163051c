"""Writing files so that a crash, a full disk or a planted link does no harm; and one writer a file.

Nothing here retries a failed sync: after one, the kernel's cache can't be trusted, and the caller has to end.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Sequence

GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
"""Errors of stat(2) that say that a name means nothing. Others say that it can't be told at the moment."""

MODE: Final = 0o640
"""Permissions of what we create, within the umask."""

KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

IOV_MAX: Final = 1024  # pieces a writev takes, IOV_MAX of limits.h


SYNC_FILE_RANGE_WRITE: Final = 2

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def open_beside(path: str, flags: int) -> int:
    """A descriptor for a file beside the stream, created with `MODE` if flags say O_CREAT; never through a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)


def open_regular(path: str, *, follow: bool = True) -> int:
    """A descriptor to read a regular file with. Never waits, and opens nothing else: a device may act on being opened.

    `follow`: whether `path` may be a symbolic link. Raises `OSError` that says what it is otherwise.
    """
    _check_regular(os.stat(path, follow_symlinks=follow).st_mode, path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        _check_regular(os.fstat(fd).st_mode, path)  # it may have been replaced meanwhile
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_regular(mode: int, path: str) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is not a regular file but {kind}", path)


def write_at(fd: int, content: bytes, offset: int) -> None:
    """Write all of `content` at `offset`. Raises `OSError` when the file system takes only part of it."""
    while content:
        written = os.pwrite(fd, content, offset)
        content = content[written:]
        offset += written


def append(fd: int, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
    """One writev of as many pieces as it takes. Returns the bytes written, which may be fewer than there are."""
    return os.writev(fd, pieces[:IOV_MAX])


def begin_writeback(fd: int) -> None:
    """Have the kernel begin to write what is dirty, without waiting: a sync of several files then waits once.

    sync_file_range(2) promises nothing, and neither does this; where it can't be called, nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)


def sync_directory(path: str) -> None:
    """Make the names in the directory of `path` durable. Raises `OSError`."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock(fd: int, path: str) -> None:
    """Become the one writer of `path`, until `fd` is closed. Raises `FatalError` that names who is."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FatalError(
            f"{path} has a writer already: {_holder_name(fd)}; one process writes a file: stop that one first"
        ) from None
    except OSError as error:
        raise FatalError(f"cannot lock {path}: {reason(error)}; it needs a file system with flock") from None


def holder(fd: int) -> int | None:
    """The process that holds the lock of the file, as far as /proc/locks tells; it does so without a lock of ours.

    None when there is none, or none that can be seen: processes of other PID namespaces can't.
    """
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                fields = line.split()
                # "1: FLOCK  ADVISORY  WRITE 3548 fd:00:1311 0 EOF"; a waiter has "->" as its second field
                if fields[1] == "FLOCK" and fields[5] == device:
                    return int(fields[4])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _holder_name(fd: int) -> str:
    pid = holder(fd)
    try:
        if pid:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                return f"process {pid} ({comm.read().strip()})"
    except OSError:
        pass  # the name is a courtesy; the refusal stands without it
    return "a process that /proc does not show"
