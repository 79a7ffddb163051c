"""Unix sockets: binding a path that nobody else listens on.

A process that was killed leaves its socket's path behind. Such a path is replaced; a live one never is, and neither is
anything else that has the path.
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
"""How long the start of another process on the same directory's Unix sockets is waited for; it takes microseconds."""


def bind_unix(path: str, backlog: int) -> socket.socket:
    """A non-blocking socket that listens at `path`, in the place of one that was left behind.

    Raises `FatalError` where the path can't be had, be it that a process listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _start_lock(os.path.dirname(path) or "."):
            _remove_stale(path)
            sock.bind(path)
            sock.listen(backlog)
    except OSError as error:
        sock.close()
        to_do = "its directory has to exist" if error.errno == errno.ENOENT else "choose another path"
        raise FatalError(f"cannot listen on unix:{path}: {reason(error)}; {to_do}") from None
    return sock


@contextlib.contextmanager
def _start_lock(directory: str) -> Iterator[None]:
    """Keep other starts out, as far as the directory can be locked.

    Between two of them, one that has bound its socket and does not listen yet looks like one that was left behind.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it may be unreadable and its paths usable all the same; if it is missing, bind says so
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
    """Whether the lock was taken, or can't be had here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_stale(path: str) -> None:
    """Remove the socket that a killed process left behind: one that nobody listens on. Never anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    # Non-blocking: a listener with a full queue is alive too, and must not be waited for.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            return
