"""The error that ends a daemon, and where an error was raised.

Its message is one sentence: what failed, where, why, and what to do. It is all that a user sees of the error. A peer's
fault is never a `FatalError`: it closes that peer's connection.
"""

from __future__ import annotations

import os
import traceback

from tailsrv_formats.errors import TailsrvError


class FatalError(TailsrvError):
    """A failure that the daemon cannot recover from. Exit code 1."""


def location(error: BaseException) -> str:
    """Where in the code the error was raised: the stack of file names and lines, innermost first, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
