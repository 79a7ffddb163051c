"""Standard error of a command: whole lines, and at most one status line below them that is drawn again and again.

The reports of several threads (warnings, lag, progress) share it: a line is written above the status line, not into it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

STANDARD_ERROR: Final = 2

ERASE: Final = "\r\x1b[K"
"""Back to the first column, and erase to the end of the line."""

LOCK_SECONDS: Final = 0.1
"""A stopped terminal (Ctrl-S) may block the thread that holds the lock; a process that ends does not wait for it."""

# Reentrant: a signal handler may interrupt a write of its own thread, and ends the process with `end_status`.
_lock: Final = threading.RLock()
_status = ""


def is_terminal() -> bool:
    """Whether standard error is a terminal that can redraw a line (TERM=dumb cannot)."""
    return os.isatty(STANDARD_ERROR) and os.environ.get("TERM", "dumb") != "dumb"


def columns() -> int:
    """The width of the terminal; 80 if unknown."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(STANDARD_ERROR).columns or 80
    return 80


def write_message(name: str, message: str) -> None:
    """Write the line ``NAME: MESSAGE``, escaped; errors of standard error itself are ignored."""
    line = ascii(" ".join(message.split()))[1:-1]
    write_line(f"{name}: {line}")


def write_line(line: str) -> None:
    """Write a line that is escaped already, above the status line if there is one."""
    with _lock:
        _write(f"{ERASE}{line}\n{_status}" if _status else f"{line}\n")


def show_status(status: str) -> None:
    """Draw the status line, in place of the last one. Only on a terminal (see `is_terminal`)."""
    global _status  # noqa: PLW0603 - a process has one standard error
    with _lock:
        _status = status
        _write(f"{ERASE}{status}")


def end_status() -> None:
    """Leave the status line on the screen and go to the next line; later lines follow it."""
    global _status  # noqa: PLW0603 - as above
    if not _status or not _lock.acquire(timeout=LOCK_SECONDS):
        return
    try:
        _status = ""
        _write("\n")
    finally:
        _lock.release()


def _write(text: str) -> None:
    # Not sys.stderr, which is None where the descriptor was closed when Python started.
    data = text.encode("ascii", "backslashreplace")
    with contextlib.suppress(OSError):  # closed, or full: there is nowhere else to report it
        while data:
            data = data[os.write(STANDARD_ERROR, data) :]
