"""The one writer of a stream knows where each of its bytes stands, or stops."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from collator import streamfile
from collator.rescue import Rescue
from collator.streamfile import ForeignBytesError, StreamFile
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import append, lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from collator.batch_builder import Piece


@pytest.fixture
def file(tmp_path: Path) -> Iterator[StreamFile]:
    """A stream that holds one message."""
    (tmp_path / "stream").write_bytes(b"one\n")
    file = StreamFile(str(tmp_path / "stream"))
    yield file
    file.close()


def test_a_short_write_is_finished_by_the_next_call(
    file: StreamFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room: list[int | OSError] = [5, 3, OSError(28, "No space left on device"), 100]

    def short(fd: int, pieces: Sequence[Piece]) -> int:
        count = room.pop(0)
        if isinstance(count, OSError):
            raise count
        return os.write(fd, b"".join(pieces)[:count])

    monkeypatch.setattr(streamfile, "append", short)
    pieces: list[Piece] = [b"two\n", memoryview(b"three\n"), bytearray(b"four\n")]
    with pytest.raises(OSError, match="No space"):
        file.append(pieces)
    assert (tmp_path / "stream").read_bytes() == b"one\ntwo\nthre"
    assert b"".join(pieces) == b"e\nfour\n"
    file.append(pieces)
    assert (tmp_path / "stream").read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert pieces == []


def append_all(file: StreamFile, pieces: list[Piece]) -> None:
    """Append as a committer does: what is not ours is moved aside."""
    while pieces:
        try:
            file.append(pieces)
        except ForeignBytesError as error:
            Rescue(file, error.start).run()


@pytest.mark.parametrize("before", [True, False])
def test_bytes_that_another_process_appends_at_the_same_moment_are_rescued(
    file: StreamFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    path = tmp_path / "stream"
    strangers = [b"stranger\n"]

    def crowded(fd: int, pieces: Sequence[Piece]) -> int:
        with path.open("ab", buffering=0) as other:
            if strangers and before:
                other.write(strangers.pop())
            written = append(fd, pieces)
            if strangers:
                other.write(strangers.pop())
        return written

    monkeypatch.setattr(streamfile, "append", crowded)
    append_all(file, [b"two\n"])
    append_all(file, [b"three\n"])
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert file.end == 14
    (rescued,) = tmp_path.glob("stream.rescued-*")
    assert b"stranger\n" in rescued.read_bytes()


def test_a_file_that_became_shorter_is_not_written_to(file: StreamFile, tmp_path: Path) -> None:
    os.truncate(tmp_path / "stream", 2)
    with pytest.raises(FatalError, match="truncated to 2 bytes"):
        file.append([b"two\n"])
    assert (tmp_path / "stream").read_bytes() == b"on"


def test_a_file_that_is_replaced_between_open_and_lock_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"old\n")

    def late(fd: int, name: str) -> None:
        if path.read_bytes() == b"old\n":
            (tmp_path / "new").write_bytes(b"newer\n")
            (tmp_path / "new").replace(path)
        lock(fd, name)

    monkeypatch.setattr(streamfile, "lock", late)
    file = StreamFile(str(path))
    assert file.end == 6
    assert not file.is_gone()
    file.close()


def test_a_file_that_is_deleted_between_open_and_lock_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"old\n")

    def late(fd: int, name: str) -> None:
        monkeypatch.undo()
        path.unlink()
        lock(fd, name)

    monkeypatch.setattr(streamfile, "lock", late)
    file = StreamFile(str(path))
    assert (file.end, file.is_gone()) == (0, False)
    file.close()


def test_more_pieces_than_a_writev_takes(file: StreamFile, tmp_path: Path) -> None:
    file.append([b"%d\n" % number for number in range(3000)])
    assert (tmp_path / "stream").read_bytes() == b"one\n" + b"".join(b"%d\n" % number for number in range(3000))


@pytest.mark.parametrize(("number", "gone"), [(errno.ENOENT, True), (errno.ESTALE, True), (errno.EACCES, False)])
def test_a_name_that_cannot_be_looked_at_is_no_file_that_is_gone(
    file: StreamFile, monkeypatch: pytest.MonkeyPatch, number: int, gone: bool
) -> None:
    """Somebody has taken the permission to search the directory from us, and gives it back."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", refuse)
    assert file.is_gone() is gone
    monkeypatch.undo()
