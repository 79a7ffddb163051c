"""Files beside the stream are created with the right permissions, under any name, and without touching the umask."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime.files import create_beside, holder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600), (0o000, 0o640)])
def test_the_kernel_applies_the_umask_and_nobody_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, mode: int
) -> None:
    """Other threads would create files with any permissions while it is set."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            os.close(create_beside(str(tmp_path / "file"), b"content"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 246 + ".producer")
    os.close(create_beside(str(path), b"content"))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_failure_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        create_beside(str(path), b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_the_holder_of_a_lock_is_found_without_a_lock_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.touch()
    with path.open("rb") as mine, path.open("rb") as other:
        assert holder(mine.fileno()) is None
        fcntl.flock(other, fcntl.LOCK_EX)
        assert holder(mine.fileno()) == os.getpid()
