"""What can happen to an index and its stream: right answers or a clear error, never a wrong one, never a crash."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from indexer.verifier import verify
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.index_file import ENTRY_BYTES, HEADER_BYTES, decode_entry, unpack
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.daemons import Daemon

TRUTH = Truth("newline", lines(20000))
OTHER = Truth("newline", lines(20000, 7, 23))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stream with a right index."""
    path = tmp_path / "stream"
    path.write_bytes(TRUTH.content)
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.count() == TRUTH.count
        assert daemon.stop() == 0
    assert index_of(path).stat().st_size > 100 * ENTRY_BYTES
    return path


def index_of(path: Path) -> Path:
    return path.with_name("stream.index")


def check_all(daemon: Daemon, truth: Truth) -> None:
    """Wait until it is indexed, then ask everywhere; what is found out while asking may take a rebuild."""
    with Asker(daemon) as asker:

        def is_right() -> bool:
            if asker.count() != truth.count:
                return False
            replies = [asker.line(str(number)) for number in range(0, truth.count, 97)]
            for number, reply in zip(range(0, truth.count, 97), replies, strict=True):
                assert reply == str(truth.offsets[number]) or reply.startswith("error: "), f"message {number}: {reply}"
            return not any(reply.startswith("error: ") for reply in replies)

        wait_until(is_right, "every answer is there")
        asker.assert_answers(truth, range(0, truth.count + 1, 501))


# --- the index


def test_a_torn_last_entry_is_cut_off_and_made_again(path: Path) -> None:
    whole = index_of(path).read_bytes()
    for torn in (1, 23):
        index_of(path).write_bytes(whole[:-torn])
        assert verify(str(path)) == []
        with index(path) as daemon:
            check_all(daemon, TRUTH)
            assert daemon.stop() == 0
        remade = index_of(path).read_bytes()
        assert len(remade) == len(whole)
        assert remade[:-ENTRY_BYTES] == whole[:-ENTRY_BYTES]
        assert decode_entry(unpack(remade[-ENTRY_BYTES:]))[:2] == decode_entry(unpack(whole[-ENTRY_BYTES:]))[:2]
        assert not index_of(path).with_name("stream.index.old").exists()


def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_cut_off(path: Path) -> None:
    whole = index_of(path).read_bytes()
    index_of(path).write_bytes(whole[: -50 * ENTRY_BYTES] + bytes(80 * ENTRY_BYTES))
    assert verify(str(path)) != []
    with index(path) as daemon:
        check_all(daemon, TRUTH)
        assert daemon.wait_log("index repaired")["cut"] == 80
        assert daemon.stop() == 0
    assert verify(str(path)) == []


def test_a_flipped_bit_anywhere_leads_to_no_wrong_answer(path: Path) -> None:
    whole = index_of(path).read_bytes()
    rng = random.Random(3)
    places = [rng.randrange(len(whole)) for _ in range(6)] + [9, HEADER_BYTES + 3, len(whole) - ENTRY_BYTES + 5]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        index_of(path).write_bytes(damaged)
        assert verify(str(path)) != [], f"at {place}"
        with index(path) as daemon:
            check_all(daemon, TRUTH)
            assert daemon.stop() == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 64, b"tailidx1", b"#!/bin/sh\n" * 100, bytes(range(256)) * 100],
    ids=["empty", "zeros", "torn header", "a script", "noise"],
)
def test_a_file_that_is_no_index_is_set_aside_and_not_destroyed(path: Path, content: bytes) -> None:
    index_of(path).write_bytes(content)
    with index(path) as daemon:
        check_all(daemon, TRUTH)
        assert daemon.stop() == 0
    if content:
        assert path.with_name("stream.index.old").read_bytes() == content
    assert verify(str(path)) == []


@pytest.mark.parametrize("options", [("--framing", "nul"), ("--interval-bytes", "512"), ("--rebuild",)])
def test_an_index_with_other_settings_is_set_aside_and_made_again(path: Path, options: tuple[str, ...]) -> None:
    before = index_of(path).read_bytes()
    with index(path, *options) as daemon:
        assert daemon.wait_log("index set aside")["renamed"] == str(path) + ".index.old"
        if "nul" not in options:
            check_all(daemon, TRUTH)
        assert daemon.stop() == 0
    assert path.with_name("stream.index.old").read_bytes() == before
    assert verify(str(path)) == []


def test_an_index_of_another_stream_is_set_aside(path: Path) -> None:
    path.write_bytes(OTHER.content)
    assert verify(str(path)) != []
    with index(path) as daemon:
        assert "other bytes" in daemon.wait_log("index set aside")["because"]
        check_all(daemon, OTHER)
        assert daemon.stop() == 0
    assert verify(str(path)) == []


def test_an_index_that_is_cut_under_a_running_indexer_is_rebuilt(path: Path) -> None:
    with index(path) as daemon:
        check_all(daemon, TRUTH)
        os.truncate(index_of(path), 100)
        check_all(daemon, TRUTH)
        assert daemon.stop() == 0
    assert verify(str(path)) == []


# --- the stream


def same_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def another_file(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.rename(path)


def removed_and_made(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("replace", [same_file, another_file, removed_and_made])
@pytest.mark.parametrize("content", [OTHER.content, OTHER.content[:5000], b""], ids=["other", "shorter", "empty"])
def test_a_stream_that_is_replaced_under_a_running_indexer_is_indexed_from_its_start(
    path: Path, replace: Callable[[Path, bytes], None], content: bytes
) -> None:
    truth = Truth("newline", content.split(b"\n")[:-1])
    with index(path) as daemon:
        check_all(daemon, TRUTH)
        replace(path, content)
        with Asker(daemon) as asker:
            wait_until(lambda: asker.ask(count=True).get("end") == truth.end, "the new stream is indexed")
        check_all(daemon, truth)
        with path.open("ab") as stream:
            stream.write(b"more\n")
        with Asker(daemon) as asker:
            wait_until(lambda: asker.count() == truth.count + 1, "the new stream is followed")
            assert asker.line("-1") == str(truth.end)
        assert daemon.stop() == 0


def test_a_stream_that_shrank_between_runs_keeps_the_right_part_of_its_index(path: Path) -> None:
    truth = Truth("newline", lines(10000))
    os.truncate(path, truth.end)
    with index(path) as daemon:
        check_all(daemon, truth)
        assert daemon.stop() == 0
    assert verify(str(path)) == []


def test_a_stream_that_was_moved_away_is_still_answered(path: Path) -> None:
    with index(path) as daemon:
        path.rename(path.with_name("moved"))
        daemon.wait_log("the file is gone")
        check_all(daemon, TRUTH)
        path.with_name("moved").rename(path)
        with path.open("ab") as stream:
            stream.write(b"more\n")
        with Asker(daemon) as asker:
            wait_until(lambda: asker.ask(count=True).get("count") == TRUTH.count + 1, "it is followed again")
        assert daemon.stop() == 0
    assert not path.with_name("stream.index.old").exists()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_everything_before_corrupt_bytes_is_answered_and_their_offset_is_reported_once(
    tmp_path: Path, framing: str
) -> None:
    path = tmp_path / "stream"
    truth = Truth(framing, lines(3000))
    path.write_bytes(truth.content + b"\xff" * 100_000)
    options = ("--framing", framing, "--max-message-bytes", "50000")
    for _ in range(2):
        with index(path, *options) as daemon:
            report = daemon.wait_log("corrupt stream: invalid framing")
            assert (report["offset"], report["number"]) == (truth.end, truth.count)
            check_all(daemon, truth)
            with path.open("ab") as stream:
                stream.write(b"\xff" * 1000)
            with Asker(daemon) as asker:
                asker.assert_answers(truth, [0, truth.count])
            assert len([event for event in daemon.events() if event["event"] == "corrupt stream: invalid framing"]) == 1
            assert daemon.stop() == 0


def test_a_hundred_megabytes_without_a_newline_cost_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"one\n")
    with index(path) as daemon:
        before = daemon.memory()
        os.truncate(path, 100 << 20)
        assert daemon.wait_log("corrupt stream: invalid framing")["offset"] == 4
        with Asker(daemon) as asker:
            assert asker.line("1") == "4"
        assert daemon.memory() - before < 8 << 20


# --- no room, no right


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.needs("mount")
def test_without_room_for_the_index_all_is_answered_and_it_is_written_later(tmp_path: Path, full_disk: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(TRUTH.content)
    ballast = full_disk / "ballast"
    ballast.write_bytes(bytes((512 << 10) - 4096))
    with index(path, "--index", full_disk / "index", "--interval-bytes", "64") as daemon:
        check_all(daemon, TRUTH)
        assert daemon.wait_log("index write failed")["error"] == "No space left on device"
        ballast.unlink()
        daemon.wait_log("index write resumed")
        check_all(daemon, TRUTH)
        assert daemon.stop() == 0
    assert verify(str(path), str(full_disk / "index")) == []


def test_a_message_of_the_greatest_length_is_one(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    wrap = make_framing("u32be", 1 << 20).wrap
    path.write_bytes(wrap(b"a" * ((1 << 20) - 4)) + wrap(b"b"))
    with index(path, "--framing", "u32be", "--max-message-bytes", str(1 << 20)) as daemon, Asker(daemon) as asker:
        assert asker.ask(number=0)["length"] == 1 << 20
        assert asker.ask(offset=1 << 20)["number"] == 1
