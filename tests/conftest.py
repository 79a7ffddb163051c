"""What holds for all tests."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest

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
    from collections.abc import Iterator

    from tailsrv_runtime.reactor import Reactor


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests, and what they start, the same surroundings everywhere.

    - A shell starts what runs in its background with SIGINT ignored, and nohup with SIGHUP, which is inherited; a
      handler is not, so that children begin with the default again.
    - Tests with thousands of clients need more descriptors than the usual soft limit.
    - Variables such as PYTHONUNBUFFERED hide faults that a user of a plain Python has.
    - Python before 3.11.5 (Debian 12 has 3.11.2) fails at random in `ast.parse` (python/cpython issue 106905), which
      pytest's own form of tracebacks uses: one failed test would end the whole run.
    """
    # A deadline of an example would measure the machine: other tests run beside this one.
    hypothesis.settings.register_profile("tailsrv", deadline=None)
    hypothesis.settings.load_profile("tailsrv")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 16)), hard))
    for name in [name for name in os.environ if name.startswith("PYTHON") and name != "PYTHONPATH"]:
        del os.environ[name]
    if sys.version_info < (3, 11, 5):
        config.option.tbstyle = "native"
    needs.pytest_configure(config)


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A loop that the test turns."""
    from tailsrv_runtime.reactor import Reactor  # noqa: PLC0415 - most tests are of processes and need none of it

    reactor = Reactor()
    yield reactor
    reactor.close()
