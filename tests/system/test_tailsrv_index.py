"""The daemon on real streams: asked by many, in many ways, while the stream grows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from indexer.verifier import verify
from tailsrv_formats.framing import FRAMINGS
from tailsrv_runtime.commit_mark import MarkWriter
from tests.support.daemons import Daemon
from tests.support.http import http_get
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.sockets import read_to_end
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_stream_is_answered_from_its_first_query_on_and_as_it_grows(path: Path, framing: str) -> None:
    payloads = [b"", *lines(3000), b"x" * 20000, b"", b"", *lines(500), b"y" * 5000]
    half, whole = Truth(framing, payloads[:2000]), Truth(framing, payloads)
    path.write_bytes(half.content)
    with index(path, "--framing", framing) as daemon, Asker(daemon) as asker:
        asker.assert_answers(half, range(0, half.count + 1, 7))
        with path.open("ab", buffering=0) as stream:
            for at in range(half.end, whole.end, 777):
                stream.write(whole.content[at : min(at + 777, whole.end)])
        asker.assert_answers(whole, range(0, whole.count + 1, 3))
        asker.assert_answers(whole, range(whole.count - 5, whole.count + 1))
        assert daemon.stop() == 0
    assert verify(str(path)) == []


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_restart_answers_the_same(path: Path, framing: str) -> None:
    truth = Truth(framing, lines(5000))
    path.write_bytes(truth.content)
    index_path = path.with_name("stream.index")
    sizes = []
    for _ in range(2):
        with index(path, "--framing", framing) as daemon, Asker(daemon) as asker:
            asker.assert_answers(truth, range(0, truth.count + 1, 50))
            assert daemon.stop() == 0
        sizes.append(index_path.stat().st_size)
    assert sizes[0] == sizes[1]
    assert sizes[0] <= 0.006 * truth.end + 64
    assert index_path.stat().st_mode & 0o7777 == 0o640


def test_netcat_is_a_client(path: Path) -> None:
    """The first half of `echo 1000 | nc -N fileserver 4324 | nc fileserver 4321`, and what ends without a newline."""
    truth = Truth("newline", lines(2000))
    path.write_bytes(truth.content)
    with index(path) as daemon:
        for request in (b"1000\n", b"1000\r\n", b"1000"):
            with daemon.connect() as sock:
                sock.sendall(request)
                sock.shutdown(socket.SHUT_WR)
                assert read_to_end(sock) == b"%d\n" % truth.offsets[1000]


def test_errors_are_answered_and_the_connection_stays(path: Path) -> None:
    path.write_bytes(b"one\ntwo\nthree")
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.line("3").startswith("error: ")
        assert asker.line("nonsense").startswith("error: ")
        assert "error" in asker.ask(number=3)
        assert "error" in asker.ask(offset=9)
        assert "error" in asker.ask(nothing=True)
        assert asker.line("2") == "8"
        assert asker.ask(offset=8)["length"] is None
        assert asker.line("-0") == "8"


def test_a_line_that_is_too_long_is_answered_once_and_skipped(path: Path) -> None:
    path.write_bytes(b"one\ntwo\n")
    with index(path) as daemon, Asker(daemon) as asker:
        asker.sock.sendall(b"9" * 100_000)
        assert asker.next().startswith("error: ")
        asker.sock.sendall(b"9" * 100_000 + b"\n1\n" + b"0" * 256 + b"\n" + b"0" * 257 + b"\n2\n")
        assert asker.next() == "4"
        assert asker.next() == "0"
        assert asker.next().startswith("error: ")
        assert asker.next() == "8"


def test_requests_are_answered_in_order_however_they_are_cut(path: Path) -> None:
    truth = Truth("newline", lines(300))
    path.write_bytes(truth.content)
    requests = b"".join(b"%d\n" % number for number in range(300)) + b'{"number":7}\n'
    with index(path) as daemon, Asker(daemon) as asker:
        for size in (1, 7, 1000):
            for at in range(0, len(requests), size):
                asker.sock.sendall(requests[at : at + size])
            assert [asker.next() for _ in range(300)] == list(map(str, truth.offsets[:300]))
            assert json.loads(asker.next())["offset"] == truth.offsets[7]


def test_a_client_that_does_not_read_is_not_read_from_and_costs_no_memory(path: Path) -> None:
    truth = Truth("newline", lines(300))
    path.write_bytes(truth.content)
    with index(path) as daemon, Asker(daemon) as asker:
        before = daemon.memory()
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            greedy.connect(("127.0.0.1", daemon.port()))
            greedy.setblocking(False)
            request = b'{"number":200}'.ljust(249) + b"\n"
            requests = request * 400
            sent = refused = 0
            while refused < 100:
                try:
                    sent += greedy.send(requests[sent % len(requests) :])
                    refused = 0
                except BlockingIOError:
                    # Others are answered meanwhile; after so many of them, nothing more is taken from this one.
                    assert asker.line("7") == str(truth.offsets[7])
                    refused += 1
            assert daemon.memory() - before < 4 * MIB
            asker.assert_answers(truth, range(0, 301, 10))
            # All that was taken is answered, once it reads.
            greedy.setblocking(True)
            greedy.settimeout(30)
            greedy.shutdown(socket.SHUT_WR)
            replies = read_to_end(greedy)
            assert replies.count(b"\n") == sent // 250 + (sent % 250 > 0)
            assert replies.count(b'"offset":%d,' % truth.offsets[200]) in {
                sent // 250,
                sent // 250 + (sent % 250 >= 14),
            }


def test_a_thousand_clients_are_answered(path: Path) -> None:
    truth = Truth("newline", lines(1000))
    path.write_bytes(truth.content)
    with index(path) as daemon:
        clients = [daemon.connect() for _ in range(1000)]
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        for number, client in enumerate(clients):
            assert client.recv(100) == b"%d\n" % truth.offsets[number]
        for client in clients:
            client.close()
        with Asker(daemon) as asker:
            assert asker.count() == 1000
        wait_until(lambda: daemon.descriptors() < 30, "what they held is given back")


def test_an_answer_knows_of_all_that_was_written_before_the_question(path: Path) -> None:
    path.touch()
    with index(path) as daemon, Asker(daemon) as asker, path.open("ab", buffering=0) as stream:
        for number in range(300):
            assert asker.line("-0") == str(13 * number)
            stream.write(b"%012d\n" % number)


def test_only_whole_committed_messages_count(path: Path) -> None:
    path.write_bytes(b"one\ntwo\nthree\nfour\nfive")
    mark = MarkWriter(f"{path}.commit", 10)
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.ask(count=True)["count"] == 2
        mark.move(14)
        assert asker.ask(count=True)["count"] == 3
        mark.move(23)
        assert asker.ask(count=True) == {
            "number": 4, "offset": 19, "length": None, "time": None, "count": 4, "end": 19,
        }  # fmt: skip
        assert daemon.stop() == 0
    with index(path, "--no-commit-mark") as daemon:
        mark.move(5)
        with Asker(daemon) as asker:
            assert asker.ask(count=True)["count"] == 4
    mark.close()


def test_a_file_that_does_not_exist_yet_is_waited_for(path: Path) -> None:
    with index(path) as daemon, Asker(daemon) as asker:
        assert asker.line("0") == "0"
        path.write_bytes(b"one\n")
        assert asker.line("1") in {"4", "error: message 1 is beyond the stream, which has 0 messages"}
        wait_until(lambda: asker.line("1") == "4", "the file is taken up")


def test_an_observed_arrival_has_its_time_and_older_messages_are_marked(path: Path) -> None:
    path.write_bytes(b"old line\n" * 3000)
    with index(path) as daemon, Asker(daemon) as asker, path.open("ab", buffering=0) as stream:
        assert asker.count() == 3000
        assert asker.ask(number=5)["exact"] is False
        times = []
        for number in range(5):
            times.append(time.time_ns())
            stream.write(b"new %d\n" % number * 2000)
            assert asker.line("-0") == str(27000 + 12000 * (number + 1))
        for number, then in enumerate(times):
            moment = datetime.fromtimestamp(then / 1e9, UTC).isoformat()
            for asked in (moment, then / 1e9):
                reply = asker.ask(time=asked)
                assert reply["number"] == 3000 + 2000 * number
                assert "exact" not in reply
                assert abs(datetime.fromisoformat(reply["time"]).timestamp() - then / 1e9) < 20
            assert asker.ask(time=reply["time"])["number"] == reply["number"]
        end = asker.ask(time=time.time() + 1)
        assert (end["number"], end["length"]) == (13000, None)
        assert asker.ask(time=0)["number"] == 0
        daemon.stop()
    with index(path) as daemon, Asker(daemon) as asker:
        for number, then in enumerate(times):
            # After a restart, to the interval of 4096 bytes, and a message.
            found = asker.ask(time=then / 1e9)["number"]
            assert 3000 + 2000 * number - 4097 // 6 <= found <= 3000 + 2000 * number


def test_a_large_stream_is_built_while_queries_are_answered(path: Path) -> None:
    """Whatever is answered during the build is right; what is not known yet is an error that says so."""
    line = b"%099d\n"
    block = b"".join(line % number for number in range(100_000))
    with path.open("wb") as stream:
        for _ in range(20):
            stream.write(block)
    with index(path) as daemon, Asker(daemon) as asker:
        unknown = 0
        while (reply := asker.line("1999999")).startswith("error: not indexed yet"):
            unknown += 1
            first = asker.line("1000")
            assert first == "100000" or first.startswith("error: not indexed yet")
            assert asker.line("-1") == "199999900" or unknown
        assert reply == "199999900"
        assert asker.count() == 2_000_000
        assert daemon.wait_log("indexed")["messages"] == 2_000_000
        assert daemon.stop() == 0
    assert verify(str(path)) == []


def test_a_second_indexer_of_an_index_names_the_process_of_the_first(path: Path) -> None:
    path.touch()
    with index(path) as first, index(path, ready=False) as second:
        assert second.wait() == 1
        assert f"process {first.pid}" in second.log()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ((), 2, "nowhere to listen"),
        (("--port", "0", "--framing", "lines"), 2, "framing"),
        (("--port", "0", "--interval-bytes", "0"), 2, "interval-bytes"),
        (("--port", "0", "--index", "/nonexistent/index"), 1, "--index"),
        (("--port", "0", "--index", "/"), 1, "cannot open the index /"),
        (("--port", "0", "--index", "/dev/null"), 1, "not a regular file"),
        (("--listen", "192.0.2.1:0"), 1, "ip address"),
    ],
)
def test_an_impossible_setting_is_one_line(path: Path, options: tuple[str, ...], code: int, told: str) -> None:
    path.touch()
    with Daemon("tailsrv-index", path, *options, ready=False) as daemon:
        assert daemon.wait() == code
        log = daemon.log()
        assert told in log
        assert len(log.splitlines()) == 1
        assert "Traceback" not in log


def test_a_link_in_the_place_of_the_index_is_not_followed(path: Path) -> None:
    path.touch()
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    path.with_name("stream.index").symlink_to(victim)
    with index(path, ready=False) as daemon:
        assert daemon.wait() == 1
        assert "symbolic link" in daemon.log()
    assert victim.read_bytes() == b"precious"


def test_an_idle_indexer_never_wakes_up(path: Path) -> None:
    path.write_bytes(b"one\n")
    with index(path) as daemon, Asker(daemon) as asker:
        asker.count()

        def switches() -> int:
            return int(daemon.status("voluntary_ctxt_switches"))

        wait_until(lambda: daemon.status("State").startswith("S"), "it sleeps")
        before = switches()
        time.sleep(1.0)  # the promise is about time in which nothing happens
        assert switches() - before <= 1


def test_metrics_report_the_progress_of_the_index(path: Path) -> None:
    path.write_bytes(b"one\ntwo\nthr")
    with index(path, "--metrics", "127.0.0.1:0") as daemon, Asker(daemon) as asker:
        asker.line("1")
        asker.line("x")
        asker.ask(time=0)
        text = http_get(daemon, "/metrics") + http_get(daemon, "/healthz")
        for line in (
            "tailsrv_index_messages 2.0",
            "tailsrv_index_behind_bytes 3.0",
            'tailsrv_index_queries_total{kind="number"} 1.0',
            'tailsrv_index_queries_total{kind="malformed"} 1.0',
            'tailsrv_index_queries_total{kind="time"} 1.0',
            "tailsrv_index_query_seconds_count 2.0",
            "ok",
        ):
            assert line in text.splitlines()


def rebuild_on_a_terminal(path: Path, until: bytes) -> tuple[bytes, int]:
    """What it shows there until it has shown this, and its exit code when the terminal went away before its end."""
    with path.open("wb") as stream:
        for _ in range(10):
            stream.write(b"%099d\n" % 7 * 100_000)
    read_end, write_end = os.pipe()
    ours, theirs = os.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "indexer", path, "--rebuild", "-p", "0", "--ready-fd", str(write_end)],
        stderr=theirs,
        pass_fds=(write_end,),
    ) as process:
        os.close(theirs)
        os.close(write_end)
        while until not in shown:
            shown += os.read(ours, 4096)
        os.close(ours)
        with os.fdopen(read_end) as ready:
            port = int(json.loads(ready.readline())["addresses"][0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            answer = b"error"
            while answer.startswith(b"error"):
                sock.sendall(b"-1\n")
                answer = sock.recv(1000)
            assert answer == b"99999900\n"
        process.terminate()
    return shown, process.returncode


def test_a_rebuild_shows_its_progress_on_a_terminal(path: Path) -> None:
    shown, code = rebuild_on_a_terminal(path, b"100%")
    assert b"indexing" in shown
    assert b"MB/s" in shown
    assert code == 0


def test_a_terminal_that_goes_away_does_not_end_a_rebuild(path: Path) -> None:
    _, code = rebuild_on_a_terminal(path, b"%")
    assert code == 0
