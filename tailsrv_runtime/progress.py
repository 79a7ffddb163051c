"""A progress bar for a person at a terminal: how much is done, the rate, and how long the rest takes.

    indexing  [##########--------------------]  34%  3.4 of 10.0 GB  3012 MB/s  0:02 left

One line that is drawn again in place, ten times a second at most, and for the first time after a tenth of a second:
what a daemon logs at its start is not written into it. With NO_COLOR or on a terminal that is not able to
(TERM=dumb) it is plain text: no escape sequences; with TERM=dumb a line is written for each tenth.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

REDRAW_SECONDS: Final = 0.1
BAR_CELLS: Final = 30
TENTHS: Final = 10

_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"
_UNITS: Final = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


class ProgressBar:
    """Call it with how many bytes are done, of how many; it draws nothing more once all are done."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._is_dumb = os.environ.get("TERM", "dumb") == "dumb"
        self._is_plain = self._is_dumb or bool(os.environ.get("NO_COLOR"))
        self._began = self._drawn = 0.0  # monotonic
        self._first = -1  # bytes that were done at the first call
        self._tenth = 0
        self._width = 0
        self._is_over = False

    def __call__(self, done: int, total: int) -> None:
        """Draw it, if it is time. A terminal that has gone away ends the drawing, and nothing else."""
        if self._is_over or total == 0:
            return
        now = time.monotonic()
        if self._first < 0:
            self._first, self._began, self._drawn = done, now, now
        self._is_over = done >= total
        if not self._is_over and not self._is_due(now, done * TENTHS // total):
            return
        self._drawn = now
        try:
            self._draw(done, total, now - self._began)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._is_over = True

    def _is_due(self, now: float, tenth: int) -> bool:
        if self._is_dumb:
            is_new, self._tenth = tenth > self._tenth, max(tenth, self._tenth)
            return is_new
        return now - self._drawn >= REDRAW_SECONDS

    def _draw(self, done: int, total: int, seconds: float) -> None:
        cells = BAR_CELLS * done // total
        bar = f"[{'#' * cells}{'-' * (BAR_CELLS - cells)}]"
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        text = f"  {bar}  {100 * done // total:3}%  {_amount(done, total)}"
        if rate > 0:
            left = f"{_duration((total - done) / rate)} left" if done < total else f"in {_duration(seconds)}"
            text += f"  {rate / 1e6:.0f} MB/s  {left}"
        if self._is_dumb:
            line = f"{self._label}{text}\n"
        else:
            room = max(20, shutil.get_terminal_size().columns - 1)
            text = text[: room - len(self._label)]
            erased = " " * max(0, self._width - len(text))
            self._width = len(text)
            label = self._label if self._is_plain else f"{_BOLD}{self._label}{_PLAIN}"
            line = f"\r{label}{text}{erased}" + ("\n" if self._is_over else "")
        self._stream.write(line)
        self._stream.flush()


def _amount(done: int, total: int) -> str:
    """Both in the unit of the total: "3.4 of 10.0 GB"."""
    size, unit = next(((size, unit) for size, unit in _UNITS if total >= size), (1, "bytes"))
    return f"{done / size:.1f} of {total / size:.1f} {unit}" if size > 1 else f"{done} of {total} {unit}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
