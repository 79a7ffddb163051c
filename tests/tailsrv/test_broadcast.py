"""Every client gets the file's bytes from the start that it requested, and nothing else."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime.commit_mark import MarkWriter
from tests.support.connections import ask
from tests.support.daemons import Daemon
from tests.support.http import http_get, scrape
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, content, describe, serve

if TYPE_CHECKING:
    from pathlib import Path

BEGINNING = b"0123456789" * 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.log"
    path.write_bytes(BEGINNING)
    return path


@pytest.mark.parametrize(
    ("header", "first"),
    [
        (b"0\n", 0),
        (b"+42\r\n", 42),
        (b" 99\t\n", 99),
        (b"100\n", 100),
        (b"-1\n", 99),
        (b"-100\n", 0),
        (b"-101\n", 0),
        (b"-9223372036854775808\n", 0),
        (b"-0\n", 100),
        (b"end\n", 100),
    ],
)
def test_a_client_gets_the_file_from_its_start_on_and_then_every_append(path: Path, header: bytes, first: int) -> None:
    with serve(path) as daemon, ask(daemon, header) as client:
        expected = BEGINNING[first:]
        assert read_exactly(client, len(expected)) == expected
        # A relative start is computed when the header is read. This later client shows that it has been read.
        with ask(daemon, b"0 now\n") as other:
            read_to_end(other)
        for data in (b"a", b"bc\n", b"d" * 70_000, b"e" * 3 * MIB, b"f"):
            append(path, data)
            assert read_exactly(client, len(data)) == data


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"0 now\n", BEGINNING),
        (b"90 now\n", BEGINNING[90:]),
        (b"-10 now\n", BEGINNING[-10:]),
        (b"end now\n", b""),
        (b"100 now\n", b""),
        (b"101 now\n", b""),
        (b"0 0\n", b""),
        (b"5000 0\n", b""),
        (b"10 20\n", BEGINNING[10:30]),
        (b"-10 5\n", BEGINNING[90:95]),
        (b"0 100\n", BEGINNING),
    ],
)
def test_the_stream_ends_at_the_stop(path: Path, header: bytes, expected: bytes) -> None:
    with serve(path) as daemon, ask(daemon, header) as client:
        assert read_to_end(client) == expected


def test_a_client_whose_count_exceeds_the_file_gets_appends_up_to_its_count(path: Path) -> None:
    with serve(path) as daemon, ask(daemon, b"-10 25\n") as client, ask(daemon, b"103 4\n") as beyond:
        assert read_exactly(client, 10) == BEGINNING[-10:]
        append(path, b"abcdefgh")
        assert read_exactly(client, 8) == b"abcdefgh"
        assert read_to_end(beyond) == b"defg"
        append(path, b"ijklmnopqrst")
        assert read_to_end(client) == b"ijklmno"


def test_a_client_whose_start_is_beyond_the_end_waits_until_the_file_has_this_byte(path: Path) -> None:
    with (
        serve(path) as daemon,
        ask(daemon, b"105\n") as near,
        ask(daemon, b"200\n") as far,
        ask(daemon, b"0\n") as all_,
    ):
        append(path, b"abcde")
        assert read_exactly(all_, 105) == BEGINNING + b"abcde"
        append(path, b"f")
        assert read_exactly(near, 1) == b"f"
        append(path, b"x" * 94 + b"yz")
        assert read_exactly(near, 96) == b"x" * 94 + b"yz"
        assert read_exactly(far, 2) == b"yz"


def test_now_includes_bytes_that_were_appended_right_before_the_header(path: Path) -> None:
    with serve(path) as daemon:
        for number in range(50):
            append(path, b"line %d\n" % number)
            with ask(daemon, b"0 now\n") as client:
                assert read_to_end(client) == path.read_bytes()
            with ask(daemon, b"-5 now\n") as client:
                assert read_to_end(client) == path.read_bytes()[-5:]


@pytest.mark.needs("nc")
def test_a_fin_ends_the_header_and_a_half_closed_netcat_is_served(path: Path) -> None:
    with serve(path) as daemon:
        with ask(daemon, b"90") as client:
            client.shutdown(socket.SHUT_WR)
            assert read_exactly(client, 10) == BEGINNING[90:]
            append(path, b"more")
            assert read_exactly(client, 4) == b"more"
        command = ["nc", "-N", "127.0.0.1", str(daemon.port())]
        done = subprocess.run(command, input=b"0 now\n", capture_output=True, check=True, timeout=30)
        assert done.stdout == path.read_bytes()


def test_bytes_after_the_header_are_ignored(path: Path) -> None:
    with serve(path) as daemon, ask(daemon, b"95\n5 now\nGET / HTTP/1.0\r\n\r\n" + bytes(100_000)) as client:
        assert read_exactly(client, 5) == BEGINNING[95:]
        client.sendall(b"more of it")
        append(path, b"abc")
        assert read_exactly(client, 3) == b"abc"


def test_a_header_may_arrive_byte_by_byte(path: Path) -> None:
    with serve(path) as daemon, daemon.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"  90  5\r\n":
            client.send(bytes([byte]))
        assert read_to_end(client) == BEGINNING[90:95]


def test_clients_at_different_offsets_all_get_a_large_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "large"
    whole = content(24 * MIB)
    path.write_bytes(whole[: 16 * MIB])
    wrong: list[int] = []

    def consume(client: socket.socket, start: int) -> None:
        if read_exactly(client, len(whole) - start) != whole[start:]:
            wrong.append(start)

    with serve(path) as daemon:
        starts = [0, 1, 4095, 5 * MIB + 7, 12 * MIB, 16 * MIB - 1, 16 * MIB, 16 * MIB + 100_001, 23 * MIB]
        clients = [ask(daemon, b"%d\n" % start) for start in starts]
        threads = [
            threading.Thread(target=consume, args=(client, start))
            for client, start in zip(clients, starts, strict=True)
        ]
        for thread in threads:
            thread.start()
        position = 16 * MIB
        for size in (1, 99, 65_536, 65_537, 1_000_000, MIB + 1, 3 * MIB):
            append(path, whole[position : position + size])
            position += size
        append(path, whole[position:])
        for thread in threads:
            thread.join(60)
        for client in clients:
            client.close()
        assert not wrong


def test_clients_may_connect_before_the_file_exists_and_get_it_when_it_appears(tmp_path: Path) -> None:
    path = tmp_path / "later"
    with serve(path) as daemon:
        daemon.wait_log("waiting for the file")
        with ask(daemon, b"0\n") as early, ask(daemon, b"3\n") as beyond, ask(daemon, b"0 now\n") as now:
            assert read_to_end(now) == b""
            path.write_bytes(b"abcdef")
            assert read_exactly(early, 6) == b"abcdef"
            assert read_exactly(beyond, 3) == b"def"


def test_a_broadcaster_serves_on_ipv4_ipv6_and_unix_sockets_at_the_same_time(path: Path, tmp_path: Path) -> None:
    unix = tmp_path / "socket"
    with serve(path, "--listen", f"unix:{unix}", "--port", "0") as daemon:
        assert len(daemon.addresses) == 3
        for number, address in enumerate(daemon.addresses):
            with ask(daemon, b"-7\n", number) as client:
                assert read_exactly(client, 7) == BEGINNING[-7:], address
        port = next(int(each.rpartition(":")[2]) for each in daemon.addresses if each.startswith("[::]"))
        if socket.has_ipv6:
            with socket.create_connection(("::1", port), 30) as client:
                client.sendall(b"0 now\n")
                assert read_to_end(client) == BEGINNING
        assert daemon.wait_log("listening")["addresses"] == daemon.addresses
        assert daemon.stop() == 0
        assert not unix.exists()


# --- the commit mark


def test_only_committed_bytes_are_sent_and_relative_starts_count_from_there(path: Path) -> None:
    mark = MarkWriter(f"{path}.commit", 60)
    with serve(path) as daemon, ask(daemon, b"50\n") as client, ask(daemon, b"0 now\n") as now:
        assert read_exactly(client, 10) == BEGINNING[50:60]
        assert read_to_end(now) == BEGINNING[:60]
        with ask(daemon, b"-5 now\n") as last:
            assert read_to_end(last) == BEGINNING[55:60]
        with ask(daemon, b"end 10\n") as end:
            assert describe(daemon, end)["offset"] == 60
            mark.move(75)
            assert read_to_end(end) == BEGINNING[60:70]
        assert read_exactly(client, 15) == BEGINNING[60:75]
        mark.move(100)
        assert read_exactly(client, 25) == BEGINNING[75:]
        mark.move(110)
        append(path, b"a" * 20)
        assert read_exactly(client, 10) == b"a" * 10
    mark.close()


def test_a_mark_that_appears_later_limits_clients_from_then_on(path: Path) -> None:
    with serve(path) as daemon, ask(daemon, b"0\n") as client:
        assert read_exactly(client, 100) == BEGINNING
        mark = MarkWriter(f"{path}.commit", 100)
        append(path, b"abcdef")
        with ask(daemon, b"100 now\n") as now:
            assert read_to_end(now) == b""
        mark.move(103)
        assert read_exactly(client, 3) == b"abc"
        mark.close()


@pytest.mark.parametrize("header", [b"0 now\n", b"-5 now\n", b"end 5\n"])
def test_a_relative_start_or_stop_respects_a_mark_that_has_just_been_created(path: Path, header: bytes) -> None:
    """Also if the daemon receives the event of the mark after the header."""
    with serve(path) as daemon, daemon.connect() as client:
        with ask(daemon, b"0 1\n") as other:
            read_to_end(other)
        daemon.signal(signal.SIGSTOP)
        client.sendall(header)
        mark = MarkWriter(f"{path}.commit", 100)
        append(path, b"uncommitted")
        daemon.signal(signal.SIGCONT)
        if header == b"end 5\n":
            assert describe(daemon, client)["offset"] == 100
        else:
            assert read_to_end(client) == (BEGINNING if header == b"0 now\n" else BEGINNING[-5:])
        mark.close()


def test_with_no_commit_mark_the_whole_file_is_served(path: Path) -> None:
    MarkWriter(f"{path}.commit", 10).close()
    with serve(path, "--no-commit-mark") as daemon, ask(daemon, b"0 now\n") as client:
        assert read_to_end(client) == BEGINNING


def test_bytes_that_stay_uncommitted_are_reported_once(path: Path) -> None:
    MarkWriter(f"{path}.commit", 10).close()
    with serve(path) as daemon:
        assert daemon.wait_log("uncommitted bytes")["committed"] == 10
        append(path, b"more")
        with ask(daemon, b"0 now\n") as client:
            assert len(read_to_end(client)) == 10
        assert [entry["event"] for entry in daemon.events()].count("uncommitted bytes") == 1


# --- the file is truncated, moved or deleted


def test_after_a_truncation_a_client_gets_nothing_until_the_file_exceeds_what_it_has(path: Path) -> None:
    with serve(path) as daemon, ask(daemon, b"0\n") as live, ask(daemon, b"90 30\n") as counted:
        assert read_exactly(live, 100) == BEGINNING
        assert read_exactly(counted, 10) == BEGINNING[90:]
        os.truncate(path, 50)
        daemon.wait_log("file truncated")
        with ask(daemon, b"0 now\n") as now:
            assert read_to_end(now) == BEGINNING[:50]
        with ask(daemon, b"40\n") as fresh:
            assert read_exactly(fresh, 10) == BEGINNING[40:50]
            append(path, b"x" * 49)
            assert read_exactly(fresh, 49) == b"x" * 49
            append(path, b"yz")
            assert read_exactly(fresh, 2) == b"yz"
        assert read_exactly(live, 1) == b"z"
        append(path, b"!")
        assert read_exactly(live, 1) == b"!"
        assert read_exactly(counted, 2) == b"z!"


def test_after_the_first_truncation_further_ones_do_not_change_bytes_that_were_sent(tmp_path: Path) -> None:
    """The kernel overwrites pages that sendfile has put into a socket's queue; from then on they are copied."""
    path = tmp_path / "cut"
    path.write_bytes(content(500_000))
    with serve(path, "--metrics", "127.0.0.1:0") as daemon:
        os.truncate(path, 450_000)
        daemon.wait_log("file truncated")
        for cuts, size in enumerate((299_999, 100_000, 8192, 1), 2):
            before = path.read_bytes()
            sent = scrape(daemon)["tailsrv_sent_bytes_total"]
            with ask(daemon, b"0 200000\n") as near, ask(daemon, b"0\n") as far:
                due = sent + 200_000 + len(before)
                wait_until(lambda due=due: scrape(daemon)["tailsrv_sent_bytes_total"] == due)  # type: ignore[misc] # mypy can't infer a default
                os.truncate(path, size)
                daemon.wait_log("file truncated", cuts)
                assert read_exactly(near, 200_000) == before[:200_000]
                assert read_exactly(far, len(before)) == before
            append(path, content(450_000 - size, seed=cuts))


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_file_that_is_moved_or_deleted_is_sent_to_its_end_and_the_daemon_exits_0(tmp_path: Path, how: str) -> None:
    path = tmp_path / "going"
    whole = content(30 * MIB)
    path.write_bytes(whole)
    with (
        serve(path) as daemon,
        ask(daemon, b"0\n") as slow,
        ask(daemon, b"end\n") as live,
        ask(daemon, b"%d\n" % 2**40),
    ):
        assert read_exactly(slow, MIB) == whole[:MIB]
        if how == "moved":
            path.rename(tmp_path / "gone")
        else:
            path.unlink()
        assert read_to_end(live) == b""
        assert read_to_end(slow) == whole[MIB:]
        assert daemon.wait() == 0
        assert daemon.wait_log("file gone")


def test_the_drain_of_a_deleted_file_ends_in_time_although_a_client_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "going"
    path.write_bytes(bytes(30 * MIB))
    with serve(path, "--drain", "0.3") as daemon, ask(daemon, b"0\n") as stalled:
        read_exactly(stalled, 1)
        path.unlink()
        assert daemon.wait() == 0
        assert daemon.wait_log("drain incomplete")["clients"] == 1


def test_with_linger_a_deleted_file_is_served_further(path: Path) -> None:
    with path.open("ab", buffering=0) as writer, serve(path, "--linger-after-file-is-gone") as daemon:
        with ask(daemon, b"0\n") as client:
            assert read_exactly(client, 100) == BEGINNING
            path.unlink()
            daemon.wait_log("file gone")
            writer.write(b"still here")
            assert read_exactly(client, 10) == b"still here"
            with ask(daemon, b"-10 now\n") as late:
                assert read_to_end(late) == b"still here"
        assert daemon.stop() == 0


def test_polling_finds_a_change_without_an_inotify_event(path: Path) -> None:
    """A store through a mapping causes no inotify event on any file system."""
    mark = MarkWriter(f"{path}.commit", 100)
    append(path, b"abcdef")
    with serve(path, "--poll", "0.05") as daemon, ask(daemon, b"0\n") as client:
        assert read_exactly(client, 100) == BEGINNING
        with open(f"{path}.commit", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            other = path.with_name("other")
            MarkWriter(str(other), 103).close()
            mapping[:] = other.read_bytes()
        assert read_exactly(client, 3) == b"abc"
    mark.close()


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_without_an_address_the_inherited_sockets_are_used(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        prefix = (sys.executable, "-c", HAND_OVER, str(fd))
        with Daemon("tailsrv", path, prefix=prefix, pass_fds=(fd,)) as daemon, ask(daemon, b"0 now\n") as client:
            assert read_to_end(client) == BEGINNING
            assert daemon.port() == listener.getsockname()[1]
            assert daemon.stop() == 0


def test_the_metrics_count_clients_bytes_lag_and_connections(path: Path) -> None:
    with (
        serve(path, "--metrics", "127.0.0.1:0") as daemon,
        ask(daemon, b"0\n") as client,
        ask(daemon, b"x\n") as wrong,
    ):
        assert read_to_end(wrong) == b""
        assert read_exactly(client, 100) == BEGINNING
        values = scrape(daemon)
        expected = {
            "tailsrv_clients": 1,
            "tailsrv_sent_bytes_total": 100,
            "tailsrv_file_bytes": 100,
            "tailsrv_committed_bytes": 100,
            "tailsrv_slowest_lag_bytes": 0,
            "tailsrv_accepted_connections_total": 2,
            "tailsrv_refused_connections_total": 0,
            "tailsrv_bad_headers_total": 1,
        }
        assert {name: values[name] for name in expected} == expected
        assert http_get(daemon, "/healthz").startswith("HTTP/1.1 200")


def test_sigusr1_logs_the_state_of_each_client(path: Path) -> None:
    with (
        serve(path) as daemon,
        ask(daemon, b"0\n") as client,
        ask(daemon, b"150\n") as waiting,
        daemon.connect() as mute,
    ):
        assert read_exactly(client, 100) == BEGINNING
        entry = describe(daemon, waiting)
        assert (entry["state"], entry["offset"], entry["lag"]) == ("waiting", 150, 0)
        entry = describe(daemon, client)
        assert (entry["state"], entry["offset"], entry["lag"]) == ("live", 100, 0)
        assert 0 <= entry["seconds"] < 60
        peer = "{}:{}".format(*mute.getsockname())
        wait_until(lambda: any(each.get("peer") == peer for each in daemon.events()))


def test_a_refused_peer_is_closed_without_a_byte_and_the_log_says_how_to_admit_it(path: Path) -> None:
    with serve(path, "--allow", "10.0.0.0/8") as daemon, ask(daemon, b"") as client:
        assert client.recv(1) == b""
        assert daemon.wait_log("peer refused")["admit"] == "--allow 127.0.0.1"
