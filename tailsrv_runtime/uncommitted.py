"""A line in the log about bytes that stay beyond the commit mark: its collator may have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

UNCOMMITTED_SECONDS: Final = 5.0
"""Bytes that stay beyond the mark for so long are worth a line in the log."""


class Uncommitted:
    """Says once that a stream has uncommitted bytes, unless commits go on. It has a timer while there are some."""

    def __init__(self, reactor: Reactor, path: str, log: Log) -> None:
        self._reactor = reactor
        self._path = path
        self._log = log
        self._committed = self._size = 0
        self._since = 0
        self._timer: Timer | None = None
        self._told = False

    def look(self, committed: int, size: int) -> None:
        """Where the mark and the end of the file are now, in bytes."""
        self._committed, self._size = committed, size
        if committed >= size:
            self._told = False
            if self._timer is not None:
                self.cancel()  # idle means idle: not even one late look
        elif self._timer is None and not self._told:
            self._wait()

    def cancel(self) -> None:
        """Say nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._since = self._committed
        self._timer = self._reactor.call_later(UNCOMMITTED_SECONDS, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._committed != self._since:
            self._wait()  # commits go on: a busy stream always has some bytes on their way
            return
        self._told = True
        self._log.warning(
            "uncommitted bytes",
            file=self._path,
            committed=self._committed,
            size=self._size,
            advice="start its collator, or give --no-commit-mark if it has none",
        )
