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

from tailsrv.kit.shortage import ShortageError

__all__ = ["Watches", "flags", "parse_events"]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_OWN_LIMITS: Final = {
    errno.ENOSPC: ("out of inotify watches", "raise fs.inotify.max_user_watches"),
    errno.EMFILE: ("out of inotify instances or descriptors", "raise fs.inotify.max_user_instances or LimitNOFILE="),
}


class Watches:
    """One inotify instance. What is short raises `ShortageError`; other errors are `OSError`."""

    def __init__(self) -> None:
        self.fd = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC, path="inotify")
        """Readable when there are events; they are read from it."""

    def add(self, path: str, events: int) -> int:
        """Watch for `events`, instead of others if it is watched already, which needs no memory; the watch's number."""
        return _call("inotify_add_watch", self.fd, os.fsencode(path), ctypes.c_uint32(events), path=path)

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
