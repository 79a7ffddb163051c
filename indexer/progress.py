"""How far a rebuild is, for somebody at a terminal: a bar, the rate, and the time that is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from typing import TextIO

    from click._termui_impl import ProgressBar  # has no public name; only its annotation is needed


class Progress:
    """Called with how far it is, and how far it goes; both in bytes. Draws nothing any more once it has got there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: ProgressBar[int] | None = None
        self._began = 0.0
        self._first = 0
        self._done = False

    def __call__(self, boundary: int, end: int) -> None:
        """Draw it. A terminal that has gone away is no reason to stop building."""
        if self._done or end == 0:
            return
        try:
            self._draw(boundary, end)
        except OSError:
            self._done = True

    def _draw(self, boundary: int, end: int) -> None:
        if self._bar is None:
            self._began, self._first = time.monotonic(), boundary
            self._bar = click.progressbar(
                length=end,
                label="indexing",
                file=self._stream,
                item_show_func=self._rate,
                update_min_steps=end // 500 + 1,
            )
            self._bar.pos = boundary
            self._bar.render_progress()
        # The end may move on while it is drawn nearer.
        self._bar.length = end
        self._bar.update(boundary - self._bar.pos, boundary)
        if boundary == end:
            self._bar.finish()
            self._bar.render_progress()
            self._bar.render_finish()
            self._done = True

    def _rate(self, boundary: int | None) -> str:
        seconds = time.monotonic() - self._began
        if boundary is None or seconds <= 0:
            return ""
        return f"{(boundary - self._first) / seconds / 1e6:.0f} MB/s"
