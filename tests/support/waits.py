"""Waiting for an event that has to come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 30.0
"""Seconds after which a test gives up an event: long, for a busy machine. A test that passes never waits this long."""


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    """Check the condition every 5 ms until it holds: for what the kernel reports no event for (a size, a count)."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:g} s: {what or condition}")
        time.sleep(0.005)


def wait_size(path: Path, size: int) -> None:
    """Wait until the file has at least `size` bytes."""
    wait_until(lambda: path.exists() and path.stat().st_size >= size, f"{path} reaches {size} bytes")


def wait_quiet(measure: Callable[[], object], seconds: float) -> None:
    """Wait until the measure has not changed for `seconds`: what a start or a connection set off is then over."""
    last, since = measure(), time.monotonic()

    def is_quiet() -> bool:
        nonlocal last, since
        if (now := measure()) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    wait_until(is_quiet, f"no change for {seconds:g} s")
