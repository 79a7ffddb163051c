"""Events of files and directories (inotify), and the names of inotify's limits.

The three system calls are called through ctypes. inotify_simple, which parses the events, would find libc by running
ldconfig, which needs descriptors, a process and temporary files: a restarted worker may have none of these.
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
    """Whether `path` still names the open file `fd`. True if that cannot be determined at the moment."""
    try:
        ours = os.fstat(fd)
        return ours.st_nlink > 0 and os.path.samestat(ours, os.stat(path))
    except OSError as error:
        return error.errno not in GONE


class Watches:
    """One inotify instance. Raises `ShortageError` at a limit of inotify, and other `OSError`s."""

    def __init__(self) -> None:
        self.fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC, path="inotify")
        """The descriptor to read events from."""

    def add(self, path: str, events: int) -> int:
        """Watch `path` for `events`, which replace those of an existing watch. Returns the number of the watch."""
        return _call("inotify_add_watch", self.fd, os.fsencode(path), ctypes.c_uint32(events), path=path)

    def open(self, path: str) -> tuple[int, int]:
        """Open a regular file for reading, and watch it. Returns the descriptor and the number of the watch."""
        while True:
            fd = open_regular(path)
            try:
                # By descriptor: `path` may name another file by now, and no event would report that.
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
        """Remove a watch, which the kernel may have removed already, together with its file."""
        with contextlib.suppress(OSError):
            _call("inotify_rm_watch", self.fd, watch)

    def close(self) -> None:
        """Close the instance, with all its watches."""
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
