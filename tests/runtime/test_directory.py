"""A new file replaces the old one whole, with the right permissions, under any name, and without touching the umask."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime.directory import Directory, NewFile, create_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600), (0o000, 0o640)])
def test_the_kernel_applies_the_umask_and_the_process_never_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, mode: int
) -> None:
    """Other threads would create files with any permissions while it is set."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            os.close(create_file(str(tmp_path / "file"), b"content"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 246 + ".producer")
    os.close(create_file(str(path), b"content"))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_failure_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        create_file(str(path), b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["stream", "x" * 245])
def test_a_temporary_file_of_a_crash_is_swept(tmp_path: Path, name: str) -> None:
    directory = Directory(str(tmp_path / name))
    NewFile(directory, f"{name}.producers"[-255:])
    other = NewFile(directory, "other")
    directory.sweep(f"{name}.producers"[-255:])
    assert [entry.name for entry in tmp_path.iterdir()] == [".other.new"]
    other.discard()
    assert list(tmp_path.iterdir()) == []
    directory.close()
