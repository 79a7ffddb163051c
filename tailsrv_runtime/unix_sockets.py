"""Unix sockets: binding a path on which no other process listens.

A process that was killed leaves the path of its socket behind. Such a stale socket is replaced. A socket on which a
process listens is never replaced, nor is a file of any other kind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Iterator

START_LOCK_SECONDS: Final = 1.0
"""Longest wait for another process that binds a Unix socket in the same directory; that takes microseconds."""


def bind_unix(path: str, backlog: int) -> socket.socket:
    """A non-blocking socket that listens at `path`; a stale socket there is replaced.

    Raises `FatalError` if `path` cannot be bound, for example because a process listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _start_lock(os.path.dirname(path) or "."):
            _remove_stale(path)
            sock.bind(path)
            sock.listen(backlog)
    except OSError as error:
        sock.close()
        to_do = "create its directory" if error.errno == errno.ENOENT else "choose another path"
        raise FatalError(f"cannot listen on unix:{path}: {reason(error)}; {to_do}") from None
    return sock


@contextlib.contextmanager
def _start_lock(directory: str) -> Iterator[None]:
    """Exclude other starts, if the directory can be locked.

    A socket that another process has bound, and on which it does not listen yet, would look stale.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # unreadable, but perhaps usable; if it is missing, bind fails
        yield
        return
    try:
        end = time.monotonic() + START_LOCK_SECONDS
        while not _locked(fd) and time.monotonic() < end:
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """Whether the lock was taken, or locks are not supported here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_stale(path: str) -> None:
    """Remove a socket on which no process listens. Never anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    # Non-blocking: a listener with a full queue is alive, too, and connect would wait for it.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            return
