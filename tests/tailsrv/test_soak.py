"""A short form of the soak; `make soak` runs the long one."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import verdict
from tests.soak.run import soak

pytestmark = pytest.mark.needs("nc")


def test_clients_that_connect_disconnect_stall_and_send_nonsense_leave_nothing_in_use() -> None:
    assert verdict(soak(8.0, flood_seconds=0.5, flood_rate=1000)) == []


def test_the_same_holds_with_scrapes_head_requests_signals_and_a_log_that_is_read_in_bursts() -> None:
    assert verdict(soak(10.0, flood_seconds=0.5, flood_rate=1000, harsh=True)) == []
