"""A token bucket: limits a transfer to a number of bytes per second, in steps of `STEP_SECONDS`.

Pure: the caller passes the time. A caller takes tokens, one per byte, before it sends, and returns those that it could
not use.
"""

from __future__ import annotations

from typing import Final

STEP_SECONDS: Final = 0.05
"""The bucket releases the bytes of this much time at once: short enough to be smooth, long enough to be cheap."""


class TokenBucket:
    """Allows `rate` bytes per second, 1 or more."""

    __slots__ = ("_rate", "_since", "_step", "_tokens")

    def __init__(self, rate: int, now: float) -> None:
        """`now`: seconds of any clock that never goes back; `take` uses the same clock."""
        self._rate = rate
        self._step = max(1.0, rate * STEP_SECONDS)
        self._tokens = self._step
        self._since = now

    def take(self, now: float, most: int) -> int:
        """Take up to `most` bytes, which the caller sends at once. Returns 0 if it is too early for a step."""
        # Two steps at most: a client that did not read for long does not get a burst.
        self._tokens = min(2 * self._step, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < min(self._step, most):
            return 0
        taken = min(int(self._tokens), most)
        self._tokens -= taken
        return taken

    def put_back(self, unused: int) -> None:
        """Return bytes that were taken but not sent."""
        self._tokens += unused

    def wait_seconds(self) -> float:
        """Seconds from the last `take` until a step is available."""
        return max(0.0, self._step - self._tokens) / self._rate
