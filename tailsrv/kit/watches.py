"""The kernel's news of files and directories (inotify), and what its limits are called."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from inotify_simple import INotify, flags, parse_events

from tailsrv.kit.errors import reason
from tailsrv.kit.shortage import ShortageError

__all__ = ["INotify", "Watches", "flags", "parse_events"]

_OWN_LIMITS: Final = {
    errno.ENOSPC: ("out of inotify watches", "raise fs.inotify.max_user_watches"),
    errno.EMFILE: ("out of inotify instances or descriptors", "raise fs.inotify.max_user_instances or LimitNOFILE="),
}


class Watches:
    """One inotify instance. What is short raises `ShortageError`; other errors are `OSError`."""

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise _named(error, "the files") from None
        self.fd = self._inotify.fileno()
        """Readable when there are events; they are read from it."""

    def add(self, path: str, events: int) -> int:
        """Watch for `events`, instead of others if it is watched already, which needs no memory; the watch's number."""
        try:
            watch: int = self._inotify.add_watch(path, events)
        except OSError as error:
            raise _named(error, path) from None
        return watch

    def remove(self, watch: int) -> None:
        """Watch no longer; also when the kernel has removed the watch together with its file."""
        with contextlib.suppress(OSError):
            self._inotify.rm_watch(watch)

    def close(self) -> None:
        """Watch nothing any more."""
        self._inotify.close()


def _named(error: OSError, path: str) -> OSError:
    if error.errno in _OWN_LIMITS:
        short = ShortageError(error, *_OWN_LIMITS[error.errno])
        short.filename = path
        return short
    return OSError(error.errno, reason(error), os.fspath(path))
