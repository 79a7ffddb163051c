"""A warning about bytes that stay beyond the commit mark: the collator may have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

UNCOMMITTED_SECONDS: Final = 5.0
"""Time after which bytes beyond the commit mark are reported, if no commit happens."""


class Uncommitted:
    """Reports once that a stream has uncommitted bytes, unless commits go on. Without such bytes it has no timer."""

    def __init__(self, reactor: Reactor, path: str, log: Log) -> None:
        self._reactor = reactor
        self._path = path
        self._log = log
        self._committed = self._size = 0
        self._since = 0
        self._timer: Timer | None = None
        self._reported = False

    def look(self, committed: int, size: int) -> None:
        """Note the commit mark and the size of the file, in bytes."""
        self._committed, self._size = committed, size
        if committed >= size:
            self._reported = False
            if self._timer is not None:
                self.cancel()  # an idle daemon must not wake up, not even once
        elif self._timer is None and not self._reported:
            self._wait()

    def cancel(self) -> None:
        """Report nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._since = self._committed
        self._timer = self._reactor.call_later(UNCOMMITTED_SECONDS, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._committed != self._since:
            self._wait()  # commits go on: a busy stream always has some uncommitted bytes
            return
        self._reported = True
        self._log.warning(
            "uncommitted bytes",
            file=self._path,
            committed=self._committed,
            size=self._size,
            advice="start its collator, or give --no-commit-mark if it has none",
        )
