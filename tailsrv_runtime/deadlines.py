"""One time limit for many peers, with a single timer.

All limits of an instance are equally long, so the oldest entry is always the next one due: a dict in order of
insertion is the whole queue, and starting or cancelling a limit costs a dict operation. Empty, it holds no timer.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor, Timer

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Calls ``expired(key)`` for each key that was started `seconds` ago and not cancelled since."""

    def __init__(
        self,
        reactor: Reactor,
        seconds: float,
        expired: Callable[[K], None],
        abort: Callable[[K], None] | None = None,
    ) -> None:
        """``abort(key)`` closes the peer that `key` is, when ``expired(key)`` raises; see `Reactor.contain`."""
        self._reactor = reactor
        self._abort = abort
        self._seconds = seconds
        self._expired = expired
        self._due: dict[K, float] = {}
        self._timer: Timer | None = None

    def start(self, key: K) -> None:
        """Start the time of `key`, or restart it."""
        self._due.pop(key, None)
        self._due[key] = time.monotonic() + self._seconds
        if self._timer is None:
            self._timer = self._reactor.call_later(self._seconds, self._check)

    def cancel(self, key: K) -> None:
        """Stop the time of `key`. Unknown keys are ignored."""
        self._due.pop(key, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()  # an idle daemon must not wake up, not even once
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        now = time.monotonic()
        due = []
        for key, when in self._due.items():
            if when > now:
                break
            due.append(key)
        for key in due:
            # The callback for an earlier key may have cancelled this one.
            if self._due.pop(key, None) is not None:
                try:
                    self._expired(key)
                except Exception as error:  # noqa: BLE001 - contained, or raised again
                    abort = self._abort
                    self._reactor.contain(error, None if abort is None else partial(abort, key))
        if self._timer is not None:  # a callback has started a time: earlier ones end before it
            self._timer.cancel()
            self._timer = None
        if self._due:
            first = next(iter(self._due.values()))
            self._timer = self._reactor.call_later(max(0.0, first - time.monotonic()), self._check)
