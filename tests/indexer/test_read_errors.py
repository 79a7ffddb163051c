"""Places that the kernel can't read, and descriptors that are good for nothing any more: one answer each, no end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from indexer.verifier import verify
from tests.support.http import health
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import Daemon

TRUTH = Truth("newline", lines(20000))
LONGER = Truth("newline", lines(40000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stream with a right index."""
    path = tmp_path / "stream"
    path.write_bytes(TRUTH.content)
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.count() == TRUTH.count
        assert daemon.stop() == 0
    return path


def traced(path: Path, spec: str, where: Path, *options: str) -> Daemon:
    """An indexer whose reads of the file `where` fail as strace's `spec` says."""
    words = ("strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", "/dev/null", "-P", str(where))
    calls = spec.partition(":")[0]
    prefix = (*words, "-e", f"trace={calls}", "-e", f"inject={spec}")
    return index(path, "--metrics", "127.0.0.1:0", *options, prefix=prefix)


@pytest.mark.parametrize("name", ["stream", "stream.index"])
@pytest.mark.parametrize("error", ["EIO", "EISDIR", "EAGAIN", "ENOMEM"])
@pytest.mark.needs("strace")
def test_a_place_that_cannot_be_read_costs_one_answer(path: Path, name: str, error: str) -> None:
    """One read in ten fails, of the stream or of the index, from the 40th on: each costs the answer that needs it."""
    where = path.with_name(name)
    with traced(path, f"pread64:error={error}:when=40+10", where) as daemon, Asker(daemon) as asker:
        failed = 0
        for number in range(0, TRUTH.count, 97):
            reply = asker.line(str(number))
            if reply.startswith("error: cannot read "):
                assert str(where) in reply
                failed += 1
            else:
                assert reply == str(TRUTH.offsets[number])
        assert failed
        assert daemon.stop() == 0
    assert not path.with_name("stream.index.old").exists()
    assert verify(str(path)) == []


@pytest.mark.parametrize("error", ["EIO", "EISDIR", "ESTALE", "ENOTCONN"])
@pytest.mark.needs("strace")
def test_following_over_an_unreadable_place_is_reported_once_and_tried_again(path: Path, error: str) -> None:
    """The stream can't be read at first, for three tries."""
    with traced(path, f"pread64:error={error}:when=1..3", path) as daemon, Asker(daemon) as asker:
        assert f"{path} cannot be read" in asker.line("5")
        code, why = health(daemon)
        assert code == 503
        assert f"{path} cannot be read around byte 0" in why
        wait_until(lambda: asker.line("5") == str(TRUTH.offsets[5]), "it is read again")
        wait_until(lambda: health(daemon)[0] == 200, "it is well")
        asker.assert_answers(TRUTH, range(0, TRUTH.count + 1, 501))
        with path.open("ab") as stream:
            stream.write(LONGER.content[TRUTH.end :])
        wait_until(lambda: asker.ask(count=True).get("count") == LONGER.count, "it is followed")
        events = [event["event"] for event in daemon.events()]
        assert events.count("stream read failed") == 1
        assert events.count("index set aside") == 0
        assert daemon.stop() == 0
    assert verify(str(path)) == []


@pytest.mark.needs("strace")
@pytest.mark.parametrize("poll", [(), ("--poll", "0.05")], ids=["asked", "polled"])
def test_a_file_whose_server_has_forgotten_it_is_opened_again(path: Path, poll: tuple[str, ...]) -> None:
    """As after the restart of a file server: from some moment on, every call on the descriptor says ESTALE.

    (Here for a dozen calls: strace counts calls, not descriptors.)
    """
    with traced(path, "lseek,pread64:error=ESTALE:when=30..42", path, *poll) as daemon, Asker(daemon) as asker:
        numbers = itertools.cycle(range(0, TRUTH.count, 701))  # a block that was read is not read again

        def is_stale() -> bool:
            return asker.line(str(next(numbers))).startswith("error: ")

        wait_until(is_stale, "the descriptor is stale")
        wait_until(lambda: asker.line("7") == str(TRUTH.offsets[7]), "it is read again")
        with path.open("ab") as stream:
            stream.write(LONGER.content[TRUTH.end :])
        wait_until(lambda: asker.ask(count=True).get("count") == LONGER.count, "it is followed")
        wait_until(lambda: health(daemon)[0] == 200, "it is well")
        asker.assert_answers(LONGER, range(0, LONGER.count + 1, 501))
        assert "unexpected error" not in [event["event"] for event in daemon.events()]
        assert daemon.stop() == 0
    assert verify(str(path)) == []


@pytest.mark.needs("strace")
def test_an_unreadable_place_that_growth_meets_is_waited_out_and_what_is_known_is_answered(path: Path) -> None:
    path.with_name("stream.index").unlink()
    path.write_bytes(b"")
    with traced(path, "pread64:error=EIO:when=6..7", path) as daemon, Asker(daemon) as asker:
        written = 0
        with path.open("ab", buffering=0) as stream:
            for end in range(0, TRUTH.end, 8192):
                stream.write(TRUTH.content[written : end + 8192])
                written = min(TRUTH.end, end + 8192)
                reply = asker.line("0")
                assert reply == "0" or reply.startswith("error: "), reply
        daemon.wait_log("stream read failed")
        wait_until(lambda: asker.ask(count=True).get("count") == TRUTH.count, "all is known")
        asker.assert_answers(TRUTH, range(0, TRUTH.count + 1, 501))
        assert daemon.stop() == 0
    assert verify(str(path)) == []


@pytest.mark.needs("strace")
def test_workers_that_cannot_read_leave_it_to_the_loop_which_waits(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"%099d\n" % 7 * 300_000)
    with traced(path, "pread64:error=EIO:when=3..8", path) as daemon, Asker(daemon) as asker:
        wait_until(lambda: asker.ask(count=True).get("count") == 300_000, "all is known")
        assert asker.line("299999") == "29999900"
        assert daemon.stop() == 0
    assert verify(str(path)) == []


@pytest.mark.parametrize("error", ["EIO", "EFBIG", "EDQUOT", "ENOSPC"])
@pytest.mark.parametrize("when", ["1..3", "3..5"], ids=["at the start", "later"])
@pytest.mark.needs("strace")
def test_an_index_that_cannot_be_written_is_written_later(tmp_path: Path, error: str, when: str) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"one\n")
    where = path.with_name("stream.index")
    with traced(path, f"pwrite64:error={error}:when={when}", where) as daemon, Asker(daemon) as asker:
        assert asker.line("1") == "4"
        with path.open("ab", buffering=0) as stream:
            for at in range(0, TRUTH.end, 5000):
                stream.write(TRUTH.content[at : at + 5000])
                assert asker.line("1") == "4"
        wait_until(lambda: asker.ask(count=True).get("count") == TRUTH.count + 1, "all is known")
        report = daemon.wait_log("index write failed")
        assert ("room" in report["advice"]) is (error in {"EDQUOT", "ENOSPC"})
        daemon.wait_log("index write resumed")
        assert health(daemon)[0] == 200
        assert asker.line("20000") == str(4 + TRUTH.offsets[19999])
        assert daemon.stop() == 0
    assert verify(str(path)) == []


@pytest.mark.needs("mount")
def test_a_start_without_an_inode_for_the_index_serves_and_creates_it_later(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=3", "none", place], check=True)
    try:
        for name in ("a", "b"):
            (place / name).touch()
        path = tmp_path / "stream"
        path.write_bytes(TRUTH.content)
        options = ("--index", str(place / "index"), "--metrics", "127.0.0.1:0")
        with index(path, *options) as daemon, Asker(daemon) as asker:
            asker.assert_answers(TRUTH, range(0, TRUTH.count + 1, 501))
            code, why = health(daemon)
            assert code == 503
            assert "No space left on device; make room" in why
            (place / "a").unlink()
            daemon.wait_log("index write resumed")
            assert health(daemon)[0] == 200
            asker.assert_answers(TRUTH, range(0, TRUTH.count + 1, 501))
            assert daemon.stop() == 0
        assert verify(str(path), str(place / "index")) == []
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_file_that_becomes_unusable_is_waited_for_until_it_can_be_served(path: Path) -> None:
    with index(path, "--metrics", "127.0.0.1:0") as daemon, Asker(daemon) as asker:
        asker.count()
        path.unlink()
        path.mkdir()
        assert "not a regular file" in daemon.wait_log("the file cannot be served")["error"]
        assert health(daemon)[0] == 503
        asker.assert_answers(TRUTH, range(0, TRUTH.count + 1, 501))
        path.rmdir()
        path.write_bytes(LONGER.content)
        wait_until(lambda: asker.ask(count=True).get("count") == LONGER.count, "it is taken up")
        asker.assert_answers(LONGER, range(0, LONGER.count + 1, 501))
        assert health(daemon)[0] == 200
        assert len([event for event in daemon.events() if event["event"] == "the file cannot be served"]) == 1
        assert daemon.stop() == 0


def test_sigterm_ends_a_large_build_at_once(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.touch()
    os.truncate(path, 100 << 30)
    with index(path, "--framing", "nul") as daemon:
        daemon.wait_log("indexing")
        begin = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert time.monotonic() - begin < 5  # on an idle machine it takes a tenth of a second


def test_a_query_that_meets_a_bug_costs_one_answer(path: Path) -> None:
    """The bug is planted: no answer about message 7 can be made."""
    program = (
        "from indexer import lookup\n"
        "real = lookup.Lookup.offset_of\n"
        "def broken(self, number):\n"
        "    return 1 // 0 if number == 7 else real(self, number)\n"
        "lookup.Lookup.offset_of = broken\n"
        "from indexer.cli import main\n"
        "main()\n"
    )
    read_end, write_end = os.pipe()
    words = [sys.executable, "-c", program, str(path), "--listen", "127.0.0.1:0", "--ready-fd", str(write_end)]
    with subprocess.Popen(words, pass_fds=(write_end,), stderr=subprocess.PIPE) as process:
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            port = int(json.loads(ready.readline())["addresses"][0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 30) as sock, sock.makefile("rb") as replies:
            sock.sendall(b"6\n7\n8\n")
            expected = [b"%d\n" % TRUTH.offsets[number] for number in (6, 8)]
            first, second, third = (replies.readline() for _ in range(3))
            assert [first, third] == expected
            assert second.startswith(b"error: no answer because of a bug")
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert b"ZeroDivisionError" in process.stderr.read()
