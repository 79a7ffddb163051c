"""Entries that are ahead of the commit mark wait for it: nothing beyond the end is answered, and nothing is lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from indexer.verifier import verify
from tailsrv_formats.index_file import ENTRY_BYTES, HEADER_BYTES
from tailsrv_runtime.commit_mark import MarkWriter
from tests.fuzz.fuzz_index_file import RIGHT, TRUTH, Indexer
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = Truth("newline", lines(120_000))
"""With some 700 entries; with an interval of 64 bytes, ten times as many as any number of torn ones."""
EARLY = Truth("newline", lines(2000))
OPTIONS = ("--interval-bytes", "64")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stream that is committed and indexed as a whole."""
    path = tmp_path / "stream"
    path.write_bytes(WHOLE.content)
    MarkWriter(f"{path}.commit", WHOLE.end).close()
    with index(path, *OPTIONS) as daemon, Asker(daemon) as asker:
        assert asker.count() == WHOLE.count
        assert daemon.stop() == 0
    return path


def set_mark(path: Path, end: int) -> None:
    MarkWriter(f"{path}.commit", end).close()


def wait_counted(asker: Asker, count: int) -> None:
    """Wait until it knows of so many messages, and no more."""
    wait_until(lambda: asker.ask(count=True).get("count") == count, f"{count} messages are known")


def test_a_mark_older_than_the_index_costs_nothing_at_a_start(path: Path) -> None:
    index_path = path.with_name("stream.index")
    before = index_path.read_bytes()
    set_mark(path, EARLY.end + 3)
    with index(path, *OPTIONS) as daemon, Asker(daemon) as asker:
        assert asker.count() == EARLY.count
        asker.assert_answers(EARLY, range(0, EARLY.count + 1, 7))
        assert asker.line(str(EARLY.count + 1)).startswith("error: ")
        assert "error" in asker.ask(offset=EARLY.end + 1)
        assert index_path.read_bytes() == before
        for part in (4000, 4001, 60000):
            committed = Truth("newline", lines(part))
            set_mark(path, committed.end)
            wait_counted(asker, part)
            asker.assert_answers(committed, range(0, part + 1, 997))
        set_mark(path, WHOLE.end)
        wait_counted(asker, WHOLE.count)
        asker.assert_answers(WHOLE, range(0, WHOLE.count + 1, 1777))
        with path.open("ab") as stream:
            stream.write(b"x" * 99 + b"\n")
        set_mark(path, WHOLE.end + 100)
        wait_until(lambda: asker.count() == WHOLE.count + 1, "it goes on")
        assert daemon.stop() == 0
    # The times of the entries are those of their first indexing: no start could find them again.
    assert index_path.read_bytes()[: len(before)] == before
    assert not path.with_name("stream.index.old").exists()
    assert verify(str(path)) == []


def test_a_mark_that_goes_back_while_it_runs_costs_nothing(path: Path) -> None:
    index_path = path.with_name("stream.index")
    before = index_path.read_bytes()
    with index(path, *OPTIONS) as daemon, Asker(daemon) as asker:
        assert asker.count() == WHOLE.count
        for end in (EARLY.end, EARLY.end // 2, EARLY.end):
            set_mark(path, end)
            wait_until(lambda: asker.ask(count=True).get("end", WHOLE.end) <= EARLY.end, "the mark is seen")
        assert asker.count() == EARLY.count
        asker.assert_answers(EARLY, range(0, EARLY.count + 1, 7))
        assert asker.line(str(EARLY.count + 1)).startswith("error: ")
        set_mark(path, WHOLE.end)
        wait_counted(asker, WHOLE.count)
        asker.assert_answers(WHOLE, range(0, WHOLE.count + 1, 1777))
        assert daemon.stop() == 0
    assert index_path.read_bytes() == before
    assert not path.with_name("stream.index.old").exists()


@pytest.mark.parametrize("running", [False, True], ids=["at a start", "while it runs"])
def test_what_the_power_cut_took_of_the_stream_is_cut_off_the_index_and_what_replaced_it_is_indexed(
    path: Path, running: bool
) -> None:
    """The file is shorter than the index knows, and zeros are at its end; then producers send something else."""
    other = Truth("newline", [*lines(2000), *lines(50_000, 7, 33)])

    def cut() -> None:
        set_mark(path, EARLY.end)
        os.truncate(path, EARLY.end + 1000)
        with path.open("r+b") as stream:
            stream.seek(EARLY.end)
            stream.write(bytes(1000))

    def replace() -> None:
        with path.open("r+b") as stream:
            stream.seek(EARLY.end)
            stream.write(other.content[EARLY.end :])
        set_mark(path, other.end)

    if not running:
        cut()
    with index(path, *OPTIONS) as daemon, Asker(daemon) as asker:
        if running:
            assert asker.count() == WHOLE.count
            cut()
        wait_until(lambda: asker.ask(count=True).get("count") == EARLY.count, "the cut is seen")
        asker.assert_answers(EARLY, range(0, EARLY.count + 1, 7))
        replace()
        wait_until(lambda: asker.ask(count=True).get("count") == other.count, "the new messages are seen")
        asker.assert_answers(other, range(0, other.count + 1, 331))
        assert daemon.stop() == 0
    assert verify(str(path)) == []
    assert not path.with_name("stream.index.old").exists()


def test_wherever_the_mark_is_no_answer_is_beyond_it(tmp_path: Path) -> None:
    for position, end in enumerate(range(0, TRUTH.end + 1, 37)):
        folder = tmp_path / str(position)
        folder.mkdir()
        count = max(number for number, offset in enumerate(TRUTH.offsets) if offset <= end)
        known = Truth("newline", lines(120)[:count])
        with Indexer(str(folder)) as indexer:
            indexer.attach(end).assert_answers(known)
            for further in (min(end + 100, TRUTH.end), TRUTH.end):
                indexer.follower.advance(further)
            indexer.assert_answers()
            assert indexer.log.of("index set aside") == []
            with open(indexer.index_path, "rb") as file:
                assert file.read() == RIGHT


def test_an_early_entry_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    entries = (len(RIGHT) - HEADER_BYTES) // ENTRY_BYTES
    for entry in range(entries):
        folder = tmp_path / str(entry)
        folder.mkdir()
        damaged = bytearray(RIGHT)
        damaged[HEADER_BYTES + entry * ENTRY_BYTES + 13] ^= 4
        with Indexer(str(folder), index=bytes(damaged)) as indexer:
            indexer.attach(TRUTH.offsets[60])
            indexer.follower.advance(TRUTH.end)
            indexer.assert_answers()
            path = indexer.path
        assert verify(path) == []


# --- no file


def test_questions_while_the_file_is_not_there_cost_nothing(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.with_name("stream.index").rename(elsewhere)
    before = elsewhere.read_bytes()
    away = path.with_name("away")
    path.rename(away)
    with index(path, *OPTIONS, "--index", elsewhere) as daemon, Asker(daemon) as asker:
        for request in ("5", "0", "-1", '{"number":5}', '{"last":2}', '{"offset":9}', '{"time":0}', '{"count":true}'):
            for _ in range(3):
                assert f"{path} does not exist yet" in asker.line(request)
        assert elsewhere.read_bytes() == before
        away.rename(path)
        wait_counted(asker, WHOLE.count)
        asker.assert_answers(WHOLE, range(0, WHOLE.count + 1, 1777))
        assert daemon.stop() == 0
    assert elsewhere.read_bytes() == before
    assert not path.with_name("elsewhere.old").exists()


def test_answers_before_all_is_indexed_say_that_they_are_partial(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"%099d\n" % 7 * 3_000_000)
    partial = 0
    with index(path) as daemon, Asker(daemon) as asker:
        while True:
            entry = asker.ask(number=5)
            if "error" in entry:
                continue
            assert entry["offset"] == 500
            if "partial" not in entry:
                assert (entry["count"], entry["end"]) == (3_000_000, 300_000_000)
                break
            partial += 1
            assert asker.line("5") == "500"
        assert partial
        assert "partial" not in asker.ask(count=True)
        assert daemon.stop() == 0


# --- another file of its name


def test_with_poll_a_file_that_is_replaced_again_and_again_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"one\n")
    with index(path, "--poll", "0.02") as daemon, Asker(daemon) as asker:
        for number in range(2, 8):
            if number % 2:
                path.unlink()
            other = path.with_name("other")
            other.write_bytes(b"another\n" * number)
            other.rename(path)
            wait_counted(asker, number)
        assert daemon.stop() == 0
