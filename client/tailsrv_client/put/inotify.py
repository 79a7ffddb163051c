"""inotify(7), as much of it as following a file takes, on the C library that Python runs on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import weakref
from typing import Final, NamedTuple

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
Q_OVERFLOW: Final = 0x4000
ONLYDIR: Final = 0x1000000

READ_BYTES: Final = 1 << 16

_HEADER: Final = struct.Struct("iIII")
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """What has happened, and the name in the directory that it has happened to; empty for a watched file itself."""

    mask: int
    name: str


class INotify:
    """An inotify instance; its descriptor is closed with the object."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), None)
        weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        """Readable while there are events."""
        return self._fd

    def add_watch(self, path: str, mask: int) -> None:
        """Watch `path` for the events of `mask`. Raises `OSError`."""
        _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask), path)

    def read(self) -> list[Event]:
        """The events that there are, without waiting."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, READ_BYTES)
        events, begin = [], 0
        while begin < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, begin)
            begin += _HEADER.size
            events.append(Event(mask, os.fsdecode(data[begin : begin + length].rstrip(b"\0"))))
            begin += length
        return events


def _checked(result: int, path: str | None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
