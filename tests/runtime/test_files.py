"""The holder of a lock is found without taking a lock."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from tailsrv_runtime.files import holder

if TYPE_CHECKING:
    from pathlib import Path


def test_the_holder_of_a_lock_is_found_without_a_lock_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.touch()
    with path.open("rb") as mine, path.open("rb") as other:
        assert holder(mine.fileno()) is None
        fcntl.flock(other, fcntl.LOCK_EX)
        assert holder(mine.fileno()) == os.getpid()
