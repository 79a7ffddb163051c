"""Progress of a transfer: a bar, bytes, rate and time left on a terminal; lines of bytes and rate elsewhere."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.standard_error import columns, end_status, is_terminal, show_status, write_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AFTER_SECONDS: Final = 2.0
"""A transfer that is over sooner shows no progress."""

UPDATE_SECONDS: Final = 0.5

LEAST_BAR: Final = 10
MOST_BAR: Final = 40
"""Columns of the bar between its brackets. A terminal with room for less shows none."""


class Progress:
    """The progress of one transfer.

    It is shown on standard error if that is a terminal and none of the descriptors `quiet_with` is one, because what is
    written to those would mix with the status line; `forced`: in any case, from the start. `total`: bytes to transfer,
    or None where that is not known.
    """

    def __init__(
        self,
        *,
        forced: bool,
        total: int | None = None,
        quiet_with: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._clock = total, clock
        self._terminal = is_terminal() and not any(map(os.isatty, quiet_with))
        self._shown = forced or self._terminal
        self._begin = self._last = clock()
        self._next = self._begin + (0 if forced else AFTER_SECONDS)
        self._done_at_last = 0
        self._wrote = False

    def at(self, done: int) -> None:
        """`done` bytes are transferred."""
        if not self._shown:
            return
        now = self._clock()
        if now >= self._next:
            self._next = now + UPDATE_SECONDS
            self._show(done, (done - self._done_at_last) / max(now - self._last, 1e-6), now)
            self._last, self._done_at_last, self._wrote = now, done, True

    def end(self, done: int) -> None:
        """The transfer is over after `done` bytes: show them and the average rate, if anything was shown at all."""
        if self._wrote:
            now = self._clock()
            self._show(done, done / max(now - self._begin, 1e-6), now)
            end_status()

    def _show(self, done: int, rate: float, now: float) -> None:
        text = describe(done, rate, self._total)
        if not self._terminal:
            write_line(text)
            return
        if self._total and done < self._total:
            # From the average: the rate of half a second would make the time left jump.
            average = done / max(now - self._begin, 1e-6)
            text += f"  ETA {format_time((self._total - done) / average)}" if average else ""
        show_status(with_bar(text, done, self._total, columns()))


def describe(done: int, rate: float, total: int | None) -> str:
    """Bytes, rate, and the share of `total`."""
    share = f"  {min(100, 100 * done // total)} %" if total else ""
    return f"{human(done)}  {human(rate)}/s{share}"


def with_bar(text: str, done: int, total: int | None, width: int) -> str:
    """`text` after a bar, if `total` is known and there is room; shorter than `width`, so that no terminal wraps it."""
    room = min(MOST_BAR, width - len(text) - 5)
    if not total or room < LEAST_BAR:
        return text[: max(0, width - 1)]
    filled = min(room, room * done // total)
    return f"[{'#' * filled}{'-' * (room - filled)}]  {text}"


def human(number: float) -> str:
    """Bytes for people, in powers of 1000: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def format_time(seconds: float) -> str:
    """0:42, 12:03, 3:01:07."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
