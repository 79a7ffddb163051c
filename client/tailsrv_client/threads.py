"""Threads that leave signals to the main thread."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def start(target: Callable[[], object], name: str) -> threading.Thread:
    """Run `target` in a daemon thread that no signal is delivered to.

    The kernel may give a process's signal to any thread that does not block it. Python runs the handler in the main
    thread alone, which would not even wake up for it where it waits in the kernel.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
