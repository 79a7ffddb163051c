"""The commit mark: golden bytes, torn lines, a mark that goes back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_formats import commit_mark as mark
from tailsrv_runtime.commit_mark import MarkReader, MarkWriter

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = st.integers(0, 10**20 - 1)


def test_golden_bytes() -> None:
    """The format is other people's too: these bytes may never change."""
    assert mark.encode_line(0) == b"00000000000000000000 c4854223\n"
    assert mark.encode_line(1234) == b"00000000000000001234 53fd66f2\n"


@given(LENGTHS, LENGTHS)
def test_a_reader_takes_the_larger_line(first: int, second: int) -> None:
    assert mark.decode(mark.encode_line(first) + mark.encode_line(second)) == max(first, second)


@given(LENGTHS, LENGTHS, st.integers(0, 29), st.integers(1, 255))
def test_a_torn_line_leaves_the_other_one(good: int, torn: int, position: int, flip: int) -> None:
    line = bytearray(mark.encode_line(torn))
    line[position] ^= flip
    assert mark.decode(bytes(line) + mark.encode_line(good)) == good
    assert mark.decode(mark.encode_line(good) + bytes(line)) == good


@given(st.binary(max_size=59))
def test_an_invalid_mark_reads_as_no_mark(junk: bytes) -> None:
    assert mark.decode(junk) is None or mark.decode_line(junk[:30]) is not None


def test_moving_the_mark_writes_the_lines_in_turn(tmp_path: Path) -> None:
    path = str(tmp_path / "log.commit")
    writer, reader = MarkWriter(path, 100), MarkReader(path)
    assert reader.read() == 100
    for length in (101, 150, 7000):
        writer.move(length)
        assert reader.read() == length
    lines = (tmp_path / "log.commit").read_bytes().splitlines(keepends=True)
    assert {mark.decode_line(line) for line in lines} == {150, 7000}
    writer.close()
    reader.close()


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_new_writer_can_set_the_mark_back(tmp_path: Path, moves: int) -> None:
    """After a power cut without syncs the file may be shorter than the mark; no old line may outvote the new one."""
    path = str(tmp_path / "log.commit")
    writer = MarkWriter(path, 100)
    for step in range(moves):
        writer.move(200 + step)
    writer.close()
    MarkWriter(path, 50).close()
    assert mark.decode((tmp_path / "log.commit").read_bytes()) == 50


def test_the_mark_is_created_for_us_and_our_group_alone(tmp_path: Path) -> None:
    MarkWriter(str(tmp_path / "log.commit"), 0).close()
    assert (tmp_path / "log.commit").stat().st_mode & 0o777 == 0o640 & ~_umask()


def test_the_mark_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "log.commit").symlink_to("target")
    with pytest.raises(OSError, match="symbolic links"):
        MarkWriter(str(tmp_path / "log.commit"), 0)
    assert (tmp_path / "target").read_bytes() == b"precious"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
