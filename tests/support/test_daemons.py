"""The helper that starts daemons keeps nothing of a daemon that has ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import Daemon

if TYPE_CHECKING:
    from pathlib import Path


def test_a_daemon_that_cannot_start_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ChildProcessError, match="No such file or directory"):
        Daemon("tailsrv", tmp_path / "missing" / "log", "--listen", "127.0.0.1:0")
    assert os.listdir("/proc/self/fd") == before
