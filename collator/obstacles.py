"""Obstacles: the errors of a write that the collator retries until they pass, with their log events and advice.

    disk full           ENOSPC, EDQUOT: it passes when an operator frees some space
    size limit reached  EFBIG: the limit of the process (RLIMIT_FSIZE) or of the file system; free space does not help
    shortage            descriptors, memory or threads: it passes when another process releases some

The collator retries all three for the same reason: the accepted bytes are in memory, neither the commit mark nor an
acknowledgement covers them, and consumers still read what is committed. Exiting would gain nothing, since the next
start meets the same error, and the raw port's producers would lose what the kernel has already received from them.
"""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from tailsrv_formats.errors import reason
from tailsrv_runtime.shortage import advice, is_shortage

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Obstacle(msgspec.Struct, frozen=True):
    """An error that the collator waits out."""

    event: str
    """The log event when it begins."""
    over: str
    """The log event when it has passed."""
    error: str
    """The kernel's message."""
    advice: str
    passes: bool = True
    """Whether it can pass without an operator: a limit can't."""


def obstacle(error: BaseException | None) -> Obstacle | None:
    """The obstacle behind `error`; None when there is no error, or when waiting does not help."""
    if isinstance(error, MemoryError):
        return Obstacle("writing paused", "writing resumed", "Cannot allocate memory", "free some memory")
    if not isinstance(error, OSError):
        return None
    if is_shortage(error):
        return Obstacle("writing paused", "writing resumed", reason(error), advice(error))
    if error.errno in NO_SPACE:
        return Obstacle(
            "disk full",
            "disk space available",
            reason(error),
            "free some disk space; the collator then continues by itself. Nothing is lost: producers wait",
        )
    if error.errno == errno.EFBIG:
        return Obstacle(
            "file size limit reached",
            "file size limit raised",
            reason(error),
            "raise LimitFSIZE= (ulimit -f; prlimit(1) for a running process); at the file system's own limit, begin a"
            " new file (see tailsrv-collate.md). Nothing is lost: producers wait",
            passes=False,
        )
    return None
