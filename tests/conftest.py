"""What holds for all tests."""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING

from tests.support import needs
from tests.support.needs import (  # noqa: F401  # hooks of pytest
    pytest_collection_modifyitems,
    pytest_make_collect_report,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_runtest_setup,
    pytest_terminal_summary,
)

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests, and what they start, the same surroundings everywhere.

    A shell starts what runs in its background with SIGINT ignored, and that is inherited; a handler is not, so that
    children begin with the default again. Tests with thousands of clients need as many descriptors as they may have.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needs.pytest_configure(config)
