"""Wrong entries are written again from the stream: every answer is right, and nothing but the damage is lost."""

from __future__ import annotations

import os
import random
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import repair
from indexer.verifier import verify
from tailsrv_formats.framing import FRAMINGS
from tailsrv_formats.index_file import ENTRY_BYTES, HEADER_BYTES, Header
from tailsrv_formats.index_query import Query
from tests.fuzz.fuzz_index_file import RIGHT, TRUTH, Indexer
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES = (len(RIGHT) - HEADER_BYTES) // ENTRY_BYTES
BITS = 8 * ENTRY_BYTES
LARGE = Truth("newline", lines(20000))


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        yield path


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits() -> list[int]:
    """Every bit of an entry in the middle, and some of the first and the last one."""
    middle = [HEADER_BYTES * 8 + ENTRIES // 2 * BITS + bit for bit in range(BITS)]
    ends = [HEADER_BYTES * 8 + entry * BITS + bit for entry in (0, ENTRIES - 1) for bit in range(0, BITS, 7)]
    return middle + ends


def test_a_flipped_bit_in_any_field_costs_nothing_but_the_time_of_its_entry(directory: str) -> None:
    for bit in bits():
        entry = (bit // 8 - HEADER_BYTES) // ENTRY_BYTES
        with Indexer(directory, index=flipped(RIGHT, bit)) as indexer:
            indexer.attach().assert_answers()
            assert indexer.log.of("index set aside") == [], bit
            with open(indexer.index_path, "rb") as file:
                now = file.read()
        place = HEADER_BYTES + entry * ENTRY_BYTES
        assert len(now) == len(RIGHT)
        assert now[:place] == RIGHT[:place]
        # The last one is made again, and its time is when that was.
        assert now[place + ENTRY_BYTES :] == RIGHT[place + ENTRY_BYTES :]
        assert now[place + 8 : place + 16] == RIGHT[place + 8 : place + 16], "the offset"


def test_a_bit_that_flips_while_it_runs_costs_no_answer(directory: str) -> None:
    with Indexer(directory) as indexer:
        indexer.attach()
        for bit in bits():
            indexer.overwrite(flipped(RIGHT, bit))
            assert indexer.assert_answers() == 2 * (TRUTH.count + 1), bit
        assert indexer.log.of("index set aside") == []
        assert indexer.follower._store.repaired == len(bits())


@settings(deadline=None)  # an example asks 242 questions; how long that takes is not what is promised here
@given(st.integers(0, len(RIGHT) - 1), st.binary(min_size=1, max_size=200), st.booleans())
def test_garbage_anywhere_at_a_start_or_later_leads_to_no_wrong_answer(at: int, garbage: bytes, running: bool) -> None:
    damaged = (RIGHT[:at] + garbage + RIGHT[at + len(garbage) :])[: len(RIGHT)]
    with tempfile.TemporaryDirectory() as directory:
        with Indexer(directory, index=RIGHT if running else damaged) as indexer:
            indexer.attach()
            if running:
                indexer.overwrite(damaged)
            indexer.assert_answers()
            path = indexer.path
        if at >= HEADER_BYTES:
            assert verify(path) == []


@settings(deadline=None)  # as above
@given(st.integers(0, len(RIGHT)), st.booleans())
def test_an_index_that_is_cut_anywhere_leads_to_no_wrong_answer(size: int, running: bool) -> None:
    begin = RIGHT if running else RIGHT[:size]
    with tempfile.TemporaryDirectory() as directory, Indexer(directory, index=begin) as indexer:
        indexer.attach()
        if running:
            os.truncate(indexer.index_path, size)
        indexer.assert_answers()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_damage_of_every_kind_leads_to_no_wrong_answer_whatever_the_framing(directory: str, framing: str) -> None:
    rng = random.Random(7)
    truth = Truth(framing, [*lines(40), b"x" * 300, b"", b"y" * 128, *([b"the same bytes before each boundary"] * 40)])
    with Indexer(directory, truth, index=None) as indexer:
        indexer.attach(truth.end).assert_answers(truth)
        with open(indexer.index_path, "rb") as file:
            right = file.read()
    for trial in range(60):
        damaged, at = bytearray(right), rng.randrange(HEADER_BYTES, len(right))
        if trial % 3 == 2:
            at -= (at - HEADER_BYTES) % ENTRY_BYTES
        other = HEADER_BYTES + rng.randrange(len(right) // ENTRY_BYTES - 8) * ENTRY_BYTES
        misplaced = right[other : other + rng.randrange(1, 8) * ENTRY_BYTES]
        garbage = (bytes(100), rng.randbytes(rng.randrange(1, 201)), misplaced)[trial % 3]
        damaged[at : at + len(garbage)] = garbage[: len(right) - at]
        running, early = trial % 2 == 0, rng.randrange(truth.end)
        with Indexer(directory, truth, index=right if running else bytes(damaged)) as indexer:
            indexer.attach(early if trial % 4 < 2 else truth.end)
            if running:
                indexer.overwrite(bytes(damaged))
            indexer.follower.advance(truth.end)
            indexer.assert_answers(truth)
            path = indexer.path
        if trial % 3 != 2:  # right entries in a wrong place may be of use where they are
            assert verify(path) == [], trial


def test_two_entries_that_are_swapped_are_put_right(directory: str) -> None:
    changed = bytearray(RIGHT)
    one, other = (HEADER_BYTES + entry * ENTRY_BYTES for entry in (7, 30))
    changed[one : one + ENTRY_BYTES], changed[other : other + ENTRY_BYTES] = (
        RIGHT[other : other + ENTRY_BYTES],
        RIGHT[one : one + ENTRY_BYTES],
    )
    with Indexer(directory) as indexer:
        indexer.attach().overwrite(bytes(changed))
        assert indexer.assert_answers() == 2 * (TRUTH.count + 1)
        assert indexer.log.of("index set aside") == []


def test_damage_that_takes_long_to_repair_is_cut_off_and_made_again(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "REPAIR_BYTES", 0)
    monkeypatch.setattr(repair, "REPAIR_SECONDS", -1.0)
    monkeypatch.setattr(repair, "PIECE_BYTES", 100)
    half = HEADER_BYTES + ENTRIES // 4 * ENTRY_BYTES
    with Indexer(directory) as indexer:
        indexer.attach().overwrite(RIGHT[:half] + bytes(len(RIGHT) - half))
        indexer.assert_answers()
        assert [facts for facts in indexer.log.of("index repaired") if "cut" in facts]
        assert indexer.log.of("index set aside") == []
        path = indexer.path
    assert verify(path) == []


def test_a_repaired_time_is_that_of_the_next_right_entry_so_that_nothing_is_missed(directory: str) -> None:
    entries = [Query("time", 1000 + entry, True) for entry in range(ENTRIES)]
    with Indexer(directory) as indexer:
        indexer.attach()
        before = [indexer.ask(query) for query in entries]
        indexer.overwrite(flipped(RIGHT, HEADER_BYTES * 8 + 20 * BITS + 3))
        after = [indexer.ask(query) for query in entries]
    for entry, (was, now) in enumerate(zip(before, after, strict=True)):
        assert was is not None
        assert now is not None
        assert was.number == now.number or (entry in {20, 21} and now.number < was.number)


def test_a_header_that_a_power_cut_left_without_the_stream_s_beginning_is_used(directory: str) -> None:
    content = Header("newline", 64, 1).encode() + RIGHT[HEADER_BYTES:]
    with Indexer(directory, index=content) as indexer:
        indexer.attach().assert_answers()
        assert indexer.log.of("index set aside") == []
        with open(indexer.index_path, "rb") as file:
            assert file.read() == RIGHT


# --- the daemon


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stream with a right index."""
    path = tmp_path / "stream"
    path.write_bytes(LARGE.content)
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.count() == LARGE.count
        assert daemon.stop() == 0
    return path


def index_of(path: Path) -> Path:
    return path.with_name("stream.index")


def damage(path: Path, content: bytes) -> None:
    """Overwrite the index in place, as a bad disk or a stray program does."""
    with index_of(path).open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize("running", [False, True], ids=["while it is down", "while it runs"])
def test_the_top_bit_of_an_offset_ends_nothing_and_costs_no_answer(path: Path, running: bool) -> None:
    whole = index_of(path).read_bytes()
    entry = (len(whole) - HEADER_BYTES) // ENTRY_BYTES // 2 + 3
    damaged = flipped(whole, (HEADER_BYTES + entry * ENTRY_BYTES + 8) * 8 + 7)
    if not running:
        damage(path, damaged)
    with index(path) as daemon, Asker(daemon) as asker:
        asker.count()
        if running:
            damage(path, damaged)
        asker.assert_answers(LARGE, range(0, LARGE.count + 1, 3))
        assert daemon.wait_log("index repaired")["entries"] == 1
        assert daemon.stop() == 0
    assert verify(str(path)) == []
    assert not path.with_name("stream.index.old").exists()


def test_an_index_whose_bytes_are_swapped_under_a_running_daemon_gives_no_wrong_answer(path: Path) -> None:
    whole = index_of(path).read_bytes()
    rng = random.Random(5)
    with index(path) as daemon, Asker(daemon) as asker:
        asker.count()
        for _ in range(12):
            changed = bytearray(whole)
            for _ in range(20):
                one, other = rng.sample(range(HEADER_BYTES, len(whole)), 2)
                changed[one], changed[other] = changed[other], changed[one]
            damage(path, bytes(changed))
            for number in range(0, LARGE.count, 211):

                def is_right(number: int = number) -> bool:
                    reply = asker.line(str(number))
                    assert reply == str(LARGE.offsets[number]) or reply.startswith("error: "), reply
                    return not reply.startswith("error: ")

                wait_until(is_right, "it is answered")
        assert daemon.stop() == 0


def test_a_header_that_is_damaged_is_set_aside_and_made_again(path: Path) -> None:
    damage(path, flipped(index_of(path).read_bytes(), 8 * 20))
    before = index_of(path).read_bytes()
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.count() == LARGE.count
        asker.assert_answers(LARGE, range(0, LARGE.count, 501))
        assert daemon.wait_log("index set aside")["because"] == "its header is damaged"
        assert daemon.stop() == 0
    assert path.with_name("stream.index.old").read_bytes() == before
