"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let children hear Ctrl-C.

    A shell starts what runs in its background with SIGINT ignored, and that is inherited; a handler is not, so that
    children begin with the default again.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
