"""Verified blocks are read once while the file does not change, in bounded memory, and never hide a change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from indexer import blocks
from indexer.errors import CorruptIndexError
from indexer.lookup import Lookup
from tailsrv_formats.framing import make_framing
from tailsrv_formats.index_file import ENTRY_BYTES, HEADER_BYTES
from tests.indexer.test_lookup import Known
from tests.support.naive_index import Truth, lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRUTH = Truth("newline", lines(400))
INTERVAL = 256


class Counted(Known):
    """A stream whose reads are counted."""

    def __init__(self, directory: Path) -> None:
        super().__init__(TRUTH, INTERVAL, str(directory))
        self.grow(TRUTH.end)
        self.reads: list[int] = []
        self.lookup = Lookup(make_framing("newline"), self.index, self.arrivals, self.count)

    def count(self, offset: int, size: int) -> bytes:
        self.reads.append(offset)
        return self.read(offset, size)

    def reads_of(self, *numbers: int) -> int:
        """How often the stream is read for the offsets of these messages, which are checked."""
        before = len(self.reads)
        for number in numbers:
            assert self.lookup.offset_of(number) == TRUTH.offsets[number]
        return len(self.reads) - before


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Counted]:
    stream = Counted(tmp_path)
    yield stream
    stream.index.close()


def test_a_batch_that_asks_for_messages_of_one_block_reads_the_stream_once(stream: Counted) -> None:
    per_block = INTERVAL // len(TRUTH.messages[0])
    assert stream.reads_of(*range(100, 100 + per_block)) <= 2
    assert stream.reads_of(*range(100, 100 + per_block)) == 0


def test_the_block_at_the_end_of_the_stream_is_read_each_time(stream: Counted) -> None:
    last = TRUTH.count - 1
    assert stream.reads_of(last, last) == 2


def test_after_a_change_of_the_file_its_blocks_are_read_again(stream: Counted) -> None:
    assert stream.reads_of(100) == 1
    middle = TRUTH.offsets[100] + 5
    stream.content = TRUTH.content[:middle] + b"\n" + TRUTH.content[middle + 1 :]
    stream.lookup.forget_blocks()
    with pytest.raises(CorruptIndexError):
        stream.lookup.offset_of(100)


def test_an_entry_that_changes_is_noticed_though_its_block_is_kept(stream: Counted, tmp_path: Path) -> None:
    assert stream.reads_of(100, 100) == 1
    position = stream.index.find_number(100, TRUTH.count).position
    with (tmp_path / "index").open("r+b") as file:
        file.seek(HEADER_BYTES + position * ENTRY_BYTES + 15)
        changed = file.read(1)[0] ^ 1
        file.seek(-1, 1)
        file.write(bytes([changed]))
    with pytest.raises(CorruptIndexError):
        stream.lookup.offset_of(100)


def test_few_blocks_are_kept_and_others_take_their_places(stream: Counted) -> None:
    everywhere = range(0, 380, 10)
    asked = stream.reads_of(*everywhere)
    assert asked > 2 * blocks.SLOTS
    assert stream.reads_of(everywhere[-1]) == 0
    assert stream.reads_of(*everywhere) >= asked - blocks.SLOTS


def test_a_block_larger_than_the_cache_is_not_kept(stream: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "KEPT_BYTES", 100)
    assert stream.reads_of(100, 100) == 2
