"""The short form of the kill loop. KILL_LOOP_KILLS=300 is the long one, as `python -m tests.client.kill_loop` is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.client.kill_loop import kill_loop

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("KILL_LOOP_KILLS", "20"))


@pytest.mark.timeout(120 + 3 * KILLS)
def test_whatever_is_killed_the_consumer_has_every_line_once_and_in_order(tmp_path: Path) -> None:
    with kill_loop(tmp_path, seed=KILLS) as loop:
        loop.run(KILLS, pause=0.4)
        assert loop.finish() > 500
