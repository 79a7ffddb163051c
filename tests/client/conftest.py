"""What all tests of the clients share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.streams import StreamUnderTest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A deadline for each example measures how busy the machine is; pytest-timeout bounds the test as a whole.
settings.register_profile("clients", deadline=None)
settings.load_profile("clients")

logging.getLogger("tailsrv_client").setLevel(logging.CRITICAL)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    """A stream whose daemons start when they are first asked for."""
    with StreamUnderTest(tmp_path / "s.log") as stream:
        yield stream
