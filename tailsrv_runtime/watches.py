"""The kernel's news of files and directories (inotify), and what its limits are called.

The three system calls are called through ctypes. inotify_simple, which parses the events, would first look for libc by
running ldconfig: descriptors, processes and temporary files that a worker may not have when it is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import Final

from inotify_simple import flags, parse_events

from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import GONE, open_regular
from tailsrv_runtime.shortage import ShortageError

__all__ = ["Watches", "flags", "parse_events"]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_OWN_LIMITS: Final = {
    errno.ENOSPC: ("out of inotify watches", "raise fs.inotify.max_user_watches"),
    errno.EMFILE: ("out of inotify instances or descriptors", "raise fs.inotify.max_user_instances or LimitNOFILE="),
}


_FILE_EVENTS: Final = int(flags.MODIFY | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF)


def is_named(fd: int, path: str) -> bool:
    """Whether `path` still means the open file `fd`, as far as can be told."""
    try:
        ours = os.fstat(fd)
        return ours.st_nlink > 0 and os.path.samestat(ours, os.stat(path))
    except OSError as error:
        return error.errno not in GONE


class Watches:
    """One inotify instance. What is short raises `ShortageError`; other errors are `OSError`."""

    def __init__(self) -> None:
        self.fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC, path="inotify")
        """Readable when there are events; they are read from it."""

    def add(self, path: str, events: int) -> int:
        """Watch for `events`, instead of others if it is watched already, which needs no memory; the watch's number."""
        return _call("inotify_add_watch", self.fd, os.fsencode(path), ctypes.c_uint32(events), path=path)

    def open(self, path: str) -> tuple[int, int]:
        """Open a regular file and watch it; a descriptor to read it by, and the watch's number."""
        while True:
            fd = open_regular(path)
            try:
                # By descriptor: the name may mean another file by now. If it does, no event will say so.
                watch = self.add(f"/proc/self/fd/{fd}", _FILE_EVENTS)
                if is_named(fd, path):
                    return fd, watch
            except FileNotFoundError:
                os.close(fd)
                raise FatalError(f"cannot watch {path}: there is no /proc/self/fd; mount /proc") from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def remove(self, watch: int) -> None:
        """Watch no longer; also when the kernel has removed the watch together with its file."""
        with contextlib.suppress(OSError):
            _call("inotify_rm_watch", self.fd, watch)

    def close(self) -> None:
        """Watch nothing any more."""
        os.close(self.fd)


def _call(function: str, *arguments: object, path: str | None = None) -> int:
    result: int = getattr(_LIBC, function)(*arguments)
    if result >= 0:
        return result
    code = ctypes.get_errno()
    error = OSError(code, os.strerror(code), path)
    if code in _OWN_LIMITS:
        raise ShortageError(error, *_OWN_LIMITS[code])
    raise error
