"""What keeps the collator from writing for a while: which errors are waited out, and what an operator is told.

    no room         ENOSPC, EDQUOT: it passes when somebody makes room
    too large       EFBIG: the limit of the process (RLIMIT_FSIZE) or of the file system; room does not help
    a shortage      descriptors, memory, threads: it passes when somebody lets go of some

All are waited out, for the same reason: what was accepted is in memory, the mark and the acknowledgements say nothing
of it, and consumers read what is there. Exiting would gain nothing, since the next start meets the same error, and
would cost the producers of the raw port what the kernel has already taken from them.
"""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from tailsrv_formats.errors import reason
from tailsrv_runtime.shortage import advice, is_shortage

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Obstacle(msgspec.Struct, frozen=True):
    """One thing that is waited for."""

    event: str
    """The log's event when it is met,"""
    over: str
    """and when it has passed."""
    error: str
    """What the kernel said."""
    advice: str
    passes: bool = True
    """Whether it can pass by itself: a limit can't."""


def obstacle(error: BaseException | None) -> Obstacle | None:
    """What `error` asks to wait for; None when waiting is no answer to it, or there is none."""
    if isinstance(error, MemoryError):
        return Obstacle("writing paused", "writing resumed", "Cannot allocate memory", "free some memory")
    if not isinstance(error, OSError):
        return None
    if is_shortage(error):
        return Obstacle("writing paused", "writing resumed", reason(error), advice(error))
    if error.errno in NO_SPACE:
        return Obstacle(
            "no space",
            "space again",
            reason(error),
            "make room: nothing is lost, producers wait, and it goes on by itself",
        )
    if error.errno == errno.EFBIG:
        return Obstacle(
            "file too large",
            "file may grow again",
            reason(error),
            "raise LimitFSIZE= (ulimit -f; prlimit(1) for a running process), or, where the file system's own limit is"
            " reached, begin a new file: see tailsrv-collate.md. Nothing is lost, and producers wait",
            passes=False,
        )
    return None
