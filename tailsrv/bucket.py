"""A token bucket: so many bytes per second, without bursts that matter.

Pure: the caller brings the clock. What has been given out is spent, whether or not all of it could be used; what was
not used is given back.
"""

from __future__ import annotations

from typing import Final

STEP_SECONDS: Final = 0.05
"""Bytes are given out for so long at a time: often enough to be smooth, seldom enough to be cheap."""


class Bucket:
    """Allows `rate` bytes per second (at least 1)."""

    __slots__ = ("_rate", "_since", "_step", "_tokens")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._step = max(1.0, rate * STEP_SECONDS)
        self._tokens = self._step
        self._since = now

    def take(self, now: float, most: int) -> int:
        """Up to `most` bytes, to be sent at once; 0 when it is too early."""
        self._tokens = min(2 * self._step, self._tokens + (now - self._since) * self._rate)
        self._since = now
        if self._tokens < min(self._step, most):
            return 0
        taken = min(int(self._tokens), most)
        self._tokens -= taken
        return taken

    def give_back(self, unused: int) -> None:
        """What was taken but not sent."""
        self._tokens += unused

    def wait(self) -> float:
        """Seconds from the last `take` until there is a step's worth again."""
        return max(0.0, self._step - self._tokens) / self._rate
