"""The end of connections and of the daemon: every byte, then a FIN; a reset only for clients that are cut off."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.connections import ask, is_reset
from tests.support.http import scrape
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, content, listens, serve, stalled

if TYPE_CHECKING:
    from pathlib import Path

JUNK = b"bytes after the header\n" * 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.log"
    path.write_bytes(content(MIB))
    return path


def test_bytes_after_the_header_do_not_turn_the_close_into_a_reset(path: Path) -> None:
    with serve(path) as daemon:
        for _ in range(10):
            with ask(daemon, b"0 now\n" + JUNK) as client:
                assert read_to_end(client) == path.read_bytes()
                assert not is_reset(client)


def test_a_client_that_sends_while_it_is_served_gets_everything_and_may_send_after_the_fin(path: Path) -> None:
    with serve(path) as daemon, ask(daemon, b"0 now\n") as client:
        read_exactly(client, MIB // 2)
        client.sendall(JUNK)
        rest = read_to_end(client)
        served = daemon.descriptors()
        assert rest == path.read_bytes()[MIB // 2 :]
        client.sendall(JUNK)
        client.sendall(JUNK)
        client.shutdown(socket.SHUT_WR)
        assert not is_reset(client)
        wait_until(lambda: daemon.descriptors() < served, "the connection is closed")


@pytest.mark.parametrize("header", [b"nonsense\n", b"x" * 65536, b"\n" + JUNK, b"5 5 5\n"])
def test_after_a_bad_header_the_connection_ends_without_a_byte_and_without_a_reset(path: Path, header: bytes) -> None:
    with serve(path) as daemon, ask(daemon, header) as client:
        assert client.recv(1) == b""
        client.sendall(JUNK)
        client.shutdown(socket.SHUT_WR)
        assert not is_reset(client)


@pytest.mark.parametrize("header", [b"", b"12"])
def test_a_client_that_sends_no_header_in_time_is_closed_and_logged(path: Path, header: bytes) -> None:
    with serve(path, "--header-timeout", "0.2") as daemon, ask(daemon, header) as client:
        assert client.recv(1) == b""
        assert daemon.wait_log("bad header")["error"] == "not complete after 0.2 s"


def test_the_header_timeout_does_not_limit_a_client_that_has_sent_its_header(path: Path) -> None:
    with serve(path, "--header-timeout", "0.2") as daemon, ask(daemon, b"end\n") as client, daemon.connect() as mute:
        assert mute.recv(1) == b""  # closed by the time limit, which has also passed for the other client
        append(path, b"abc")
        assert read_exactly(client, 3) == b"abc"


def test_a_slow_reader_gets_every_byte_before_the_fin(path: Path) -> None:
    with serve(path) as daemon, stalled(daemon, b"0 now\n") as client:
        client.shutdown(socket.SHUT_WR)
        # When the next client is served, the kernel has all bytes of this one.
        with ask(daemon, b"0 1\n") as other:
            assert len(read_to_end(other)) == 1
        assert read_to_end(client) == path.read_bytes()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_every_client_gets_its_bytes_and_a_fin_and_the_daemon_exits_0(path: Path, signum: int) -> None:
    with (
        serve(path) as daemon,
        ask(daemon, b"0\n" + JUNK) as live,
        ask(daemon, b"0\n") as unread,
        ask(daemon, b"%d\n" % 2**40) as waiting,
        daemon.connect() as mute,
    ):
        assert read_exactly(live, MIB) == path.read_bytes()
        live.sendall(JUNK)
        daemon.signal(signum)
        assert read_to_end(unread) == path.read_bytes()
        for client in (live, waiting, mute):
            assert not is_reset(client)
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log()


def test_a_client_that_does_not_read_does_not_delay_the_end_and_gets_a_reset(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(20 * MIB))
    with serve(path) as daemon, stalled(daemon, b"0\n") as client:
        read_exactly(client, 1)
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 4
        assert is_reset(client), "the client can tell that it does not have everything"


def test_a_second_signal_ends_the_daemon_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(20 * MIB))
    with serve(path) as daemon, stalled(daemon, b"0\n") as client:
        read_exactly(client, 1)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: not listens(daemon.port()), "it has begun to stop")
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 0.9


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_first_signal_does_not_end_the_drain_of_a_file_that_is_gone(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "large"
    whole = content(40 * MIB)
    path.write_bytes(whole)
    with serve(path, "--workers", workers) as daemon, ask(daemon, b"0\n") as client:
        received = read_exactly(client, MIB)
        path.rename(tmp_path / "rotated")
        daemon.wait_log("file gone")
        daemon.signal(signal.SIGTERM)
        received += read_to_end(client)
        assert received == whole
        assert daemon.wait() == 0


def test_a_replay_continues_to_its_end_when_the_daemon_stops(tmp_path: Path) -> None:
    path = tmp_path / "large"
    whole = content(40 * MIB)
    path.write_bytes(whole)
    with serve(path) as daemon, ask(daemon, b"0\n") as client:
        received = read_exactly(client, MIB)
        daemon.signal(signal.SIGTERM)
        received += read_to_end(client)
        assert received == whole
        assert daemon.wait() == 0


def test_bytes_and_fin_that_the_kernel_has_arrive_although_the_daemon_is_killed(path: Path) -> None:
    """The client has not read yet; the kernel has all bytes and the FIN."""
    with serve(path, "--metrics", "127.0.0.1:0") as daemon, ask(daemon, b"-500000 now\n") as client:
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: scrape(daemon)["tailsrv_sent_bytes_total"] == 500_000)
        wait_until(lambda: scrape(daemon)["tailsrv_clients"] == 0)
        daemon.kill()
        assert read_to_end(client) == path.read_bytes()[-500_000:]


def test_a_live_client_gets_a_reset_after_sigkill_and_an_end_after_sigterm(path: Path) -> None:
    for signum, expected in ((signal.SIGKILL, True), (signal.SIGTERM, False)):
        with serve(path) as daemon, ask(daemon, b"-10\n") as client:
            read_exactly(client, 10)
            daemon.signal(signum)
            assert is_reset(client) is expected
            daemon.wait()


def test_a_client_of_a_unix_socket_gets_everything_that_was_sent_before_the_daemon_ends(
    path: Path, tmp_path: Path
) -> None:
    """Unix sockets have no reset: a kill looks like an end to the client."""
    for signum in (signal.SIGKILL, signal.SIGTERM):
        with (
            serve(path, "--listen", f"unix:{tmp_path}/socket{signum}") as daemon,
            ask(daemon, b"-50000\n", 1) as client,
        ):
            wait_until(lambda client=client: bool(client.recv(1, socket.MSG_PEEK)))  # type: ignore[misc] # mypy can't infer a default
            with ask(daemon, b"0 1\n", 1) as other:
                assert len(read_to_end(other)) == 1
            daemon.signal(signum)
            assert read_to_end(client) == path.read_bytes()[-50_000:]
            daemon.wait()
