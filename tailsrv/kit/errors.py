"""The two ways in which a daemon ends early, as exceptions.

Both carry one sentence that says what, where and what to do; nothing else of them ever reaches a user.
A peer's fault is neither: it closes that peer's connection.
"""

from __future__ import annotations

import os
import traceback


class UsageError(Exception):
    """The command line can't be meant like this. Exit code 2."""


class FatalError(Exception):
    """Something that the daemon cannot work through. Exit code 1."""


def reason(error: OSError) -> str:
    """What the kernel said, without Python's decoration: "Permission denied"."""
    return error.strerror or str(error)


def location(error: BaseException) -> str:
    """Where in the code it happened, innermost first: enough for a report, and it fits a line."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
