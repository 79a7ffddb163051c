"""The two ways in which a daemon ends early, as exceptions.

Both carry one sentence that says what, where and what to do; nothing else of them ever reaches a user.
A peer's fault is neither: it closes that peer's connection.
"""

from __future__ import annotations

import os
import traceback

from tailsrv_formats.errors import TailsrvError


class FatalError(TailsrvError):
    """Something that the daemon cannot work through. Exit code 1."""


def location(error: BaseException) -> str:
    """Where in the code it happened, innermost first: enough for a report, and it fits a line."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
