"""Which bytes of the file are in memory, and how replays change that.

A sendfile of bytes that are not in the page cache sleeps until the disk has read them. So a replay looks at the file in
windows: a window that is not in memory is requested from the disk before the replay reaches it, and is dropped from
memory after the last replay nearby has passed it. Thus a replay of old history does not evict what other processes
need.

preadv2 with RWF_NOWAIT tells whether a byte is in memory. Where the file system does not support it, every byte counts
as being in memory, and nothing is requested or dropped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.stream import Stream

WINDOW_BYTES: Final = 1 << 23
KEPT_BYTES: Final = 1 << 28
"""A window stays in memory for a replay that is at most this far before its end."""

ADVICE_BYTES: Final = 1 << 17
"""The kernel reads no more than this for one call: read_ahead_kb, 128 by default."""


def in_memory(fd: int, offset: int) -> bool:
    """Whether the byte at `offset` can be read without waiting for the disk."""
    try:
        os.preadv(fd, (bytearray(1),), offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # EOPNOTSUPP: unknown. For any other error the next read of this byte fails, and is reported
        return True
    return True


class ReadAhead:
    """Requests windows from the disk for the subscribers `replaying`, and drops them later. Used by several threads."""

    def __init__(self, stream: Stream, replaying: Iterable[Subscriber]) -> None:
        """`replaying` may change during the life of this object."""
        self._stream = stream
        self._replaying = replaying
        self._cold: set[int] = set()
        """Numbers of the windows that were read from the disk for replays alone."""

    def advance(self, offset: int, requested: int) -> int:
        """Request the window of `offset` and the next one, except those below `requested`, and drop an older one.

        Windows are numbered from 0. Returns the first window that is not requested yet.
        """
        fd, cold = self._stream.fd, self._cold
        current = offset // WINDOW_BYTES
        for window in range(max(current, requested), current + 2):
            begin = window * WINDOW_BYTES
            if window not in cold and not in_memory(fd, max(begin, offset)):
                cold.add(window)
                for part in range(begin, begin + WINDOW_BYTES, ADVICE_BYTES):
                    os.posix_fadvise(fd, part, ADVICE_BYTES, os.POSIX_FADV_WILLNEED)
        # Not the window before the current one: sockets may still refer to its pages, which cannot be dropped then.
        passed = current - 2
        if passed in cold and not self._is_needed(passed):
            cold.discard(passed)
            os.posix_fadvise(fd, passed * WINDOW_BYTES, WINDOW_BYTES, os.POSIX_FADV_DONTNEED)
        return current + 2

    def _is_needed(self, window: int) -> bool:
        end = (window + 1) * WINDOW_BYTES
        # A copy: the main loop changes the collection meanwhile.
        return any(end - KEPT_BYTES < other.offset < end for other in tuple(self._replaying))

    def forget(self) -> None:
        """No replay is left: keep no record of the windows that were requested."""
        self._cold.clear()
