"""The soak's short form; `make soak` is the long one."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import verdict
from tests.soak.run import soak

pytestmark = pytest.mark.needs("nc")


def test_clients_that_come_go_stall_and_lie_leave_nothing_behind() -> None:
    assert verdict(soak(8.0, flood_seconds=0.5, flood_rate=1000)) == []


def test_the_same_holds_while_it_is_scraped_probed_and_signalled_and_its_log_is_read_in_bursts() -> None:
    assert verdict(soak(10.0, flood_seconds=0.5, flood_rate=1000, harsh=True)) == []
