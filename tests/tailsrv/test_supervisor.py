"""Several workers serve one file as a single process does."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.connections import ask, is_reset
from tests.support.daemons import Daemon
from tests.support.http import http_get, scrape
from tests.support.processes import children, is_running, open_files
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, content, follow, listens, serve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.log"
    path.write_bytes(content(MIB))
    return path


def served_by(daemon: Daemon) -> dict[int, int]:
    """The number of open sockets of each worker."""
    return {pid: sum(name.startswith("socket:") for name in open_files(pid)) for pid in children(daemon.pid)}


def has_ended(sock: socket.socket) -> bool:
    """Whether the peer's FIN has arrived, even if it was not read: TCP_CLOSE_WAIT of net/tcp_states.h."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x08"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", ":0", "unix"])
def test_all_workers_serve_the_same_bytes_on_one_address(path: Path, tmp_path: Path, listen: str) -> None:
    address = f"unix:{tmp_path}/socket" if listen == "unix" else listen
    with Daemon("tailsrv", path, "--workers", "3", "--listen", address) as daemon:
        assert len(children(daemon.pid)) == 3
        clients = [ask(daemon, b"-1000\n") for _ in range(40)]
        data = path.read_bytes()[-1000:]
        for client in clients:
            assert read_exactly(client, 1000) == data
        if listen != "unix":
            assert sum(count > 6 for count in served_by(daemon).values()) >= 2
        append(path, b"more")
        for client in clients:
            assert read_exactly(client, 4) == b"more"
        daemon.signal(signal.SIGTERM)
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log()


def test_a_worker_that_dies_is_replaced_and_connections_wait_for_its_successor(path: Path) -> None:
    with serve(path, "--workers", "2", "--metrics", "127.0.0.1:0") as daemon:
        before = children(daemon.pid)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        died = daemon.wait_log("worker died", 2)
        assert (died["status"], died["restart_seconds"]) == ("SIGKILL", 0.2)
        clients = [ask(daemon, b"0 now\n") for _ in range(10)]
        for client in clients:
            with client:
                assert read_to_end(client) == path.read_bytes()
        wait_until(lambda: len(children(daemon.pid)) == 2, "both workers run")
        assert not set(children(daemon.pid)) & set(before)
        assert scrape(daemon)["tailsrv_workers"] == 2


def test_the_metrics_are_sums_over_all_workers_and_include_those_that_died(path: Path) -> None:
    with serve(path, "--workers", "2", "--metrics", "127.0.0.1:0") as daemon:
        clients = [ask(daemon, b"-100\n") for _ in range(20)]
        for client in clients:
            read_exactly(client, 100)
        values = scrape(daemon)
        assert values["tailsrv_clients"] == 20
        assert values["tailsrv_sent_bytes_total"] == 2000
        assert values["tailsrv_file_bytes"] == MIB
        assert values["tailsrv_accepted_connections_total"] == 20
        os.kill(children(daemon.pid)[0], signal.SIGKILL)
        daemon.wait_log("worker died")

        def both_run() -> bool:
            values = scrape(daemon)
            assert values["tailsrv_sent_bytes_total"] == 2000, "also before the successor serves"
            return values["tailsrv_workers"] == 2

        wait_until(both_run, "both workers run")
        assert scrape(daemon)["tailsrv_clients"] < 20
        for client in clients:
            client.close()


def test_a_stopped_worker_delays_the_metrics_only_once(path: Path) -> None:
    """The supervisor waits a second for its answer, and then not again until the answer arrives."""
    with serve(path, "--workers", "2", "--metrics", "127.0.0.1:0") as daemon:
        pid = children(daemon.pid)[0]
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        for _ in range(20):
            assert scrape(daemon)["tailsrv_workers"] == 2
        assert time.monotonic() - begin < 15
        os.kill(pid, signal.SIGCONT)
        # Its own answers are used again.
        clients = [ask(daemon, b"-1\n") for _ in range(20)]
        for client in clients:
            read_exactly(client, 1)
        wait_until(lambda: scrape(daemon)["tailsrv_clients"] == 20)
        for client in clients:
            client.close()
        assert daemon.stop() == 0


MANY = """
import os, sys
for _ in range(1100):
    os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_supervisor_with_more_than_1024_descriptors_serves_and_stops(path: Path) -> None:
    options = ("--workers", "2", "--metrics", "127.0.0.1:0")
    with serve(path, *options, prefix=(sys.executable, "-c", MANY)) as daemon:
        assert daemon.descriptors() > 1100
        assert scrape(daemon)["tailsrv_workers"] == 2
        with ask(daemon, b"0 now\n") as client:
            assert read_to_end(client) == path.read_bytes()
        assert daemon.stop() == 0
        assert [entry for entry in daemon.events() if entry["event"] == "failed"] == []


def test_after_a_worker_is_killed_its_clients_get_a_reset_and_finished_ones_an_end(tmp_path: Path) -> None:
    path = tmp_path / "large"
    whole = content(16 * MIB)
    path.write_bytes(whole)
    with serve(path, "--workers", "2") as daemon:
        cut = [ask(daemon, b"0 now\n") for _ in range(6)]
        follower = follow(daemon, path)
        ended = [ask(daemon, b"%d now\n" % (len(whole) - 1000)) for _ in range(6)]
        for client in cut:
            assert read_exactly(client, 1) == whole[:1]
        for client in ended:
            assert read_exactly(client, 1) == whole[-1000:-999]
        # When the FIN has arrived, the kernel of the client has all bytes before it.
        for client in ended:
            wait_until(lambda client=client: has_ended(client))  # type: ignore[misc] # mypy can't infer a default
        for pid in children(daemon.pid):
            os.kill(pid, signal.SIGKILL)
        for client in ended:
            assert read_to_end(client) == whole[-999:]
        for client in (*cut, follower):
            assert is_reset(client)
            client.close()
        for client in ended:
            client.close()


def test_workers_end_when_the_supervisor_is_killed(path: Path) -> None:
    with serve(path, "--workers", "2") as daemon:
        pids = children(daemon.pid)
        daemon.kill()
        wait_until(lambda: not any(map(is_running, pids)), "the workers end")
        assert not listens(daemon.port())


def test_all_workers_send_a_file_that_is_moved_to_its_end_and_the_daemon_exits_0(path: Path) -> None:
    with serve(path, "--workers", "3") as daemon:
        clients = [ask(daemon, b"0\n") for _ in range(6)]
        path.rename(path.with_name("gone"))
        for client in clients:
            with client:
                assert read_to_end(client) == path.with_name("gone").read_bytes()
        assert daemon.wait() == 0
        assert [entry["event"] for entry in daemon.events()].count("file gone") == 3


def test_a_worker_that_hangs_when_the_file_is_moved_does_not_delay_the_end(path: Path) -> None:
    with serve(path, "--workers", "2", "--drain", "0.2") as daemon:
        os.kill(children(daemon.pid)[1], signal.SIGSTOP)
        path.rename(f"{path}.1")
        assert daemon.wait() == 0


def test_a_file_name_that_is_not_utf_8_does_not_end_a_worker(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with serve(path, "--workers", "2", "--metrics", "127.0.0.1:0") as daemon, ask(daemon, b"0\n") as client:
        assert "does not exist yet" in http_get(daemon, "/healthz")
        assert scrape(daemon)["tailsrv_workers"] == 2
        path.write_bytes(b"hello")
        assert read_exactly(client, 5) == b"hello"
        assert not [event for event in daemon.events() if event["event"] == "worker died"]


def test_an_error_that_all_workers_have_is_logged_once_and_ends_the_daemon(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "3", ready=False) as daemon:
        assert daemon.wait() == 1
        failed = [entry for entry in daemon.events() if entry["event"] == "failed"]
        assert [("not a regular file" in entry["error"]) for entry in failed] == [True]
    path = tmp_path / "later"
    with serve(path, "--workers", "2") as daemon:
        path.mkdir()
        assert daemon.wait() == 1
        failed = [entry for entry in daemon.events() if entry["event"] == "failed"]
        assert [("not a regular file" in entry["error"]) for entry in failed] == [True]


def test_sigusr1_to_the_supervisor_logs_the_clients_of_all_workers(path: Path) -> None:
    with serve(path, "--workers", "2") as daemon:
        clients = [ask(daemon, b"-1\n") for _ in range(10)]
        for client in clients:
            read_exactly(client, 1)
        daemon.signal(signal.SIGUSR1)
        daemon.wait_log("client", 10)
        peers = {entry["peer"] for entry in daemon.events() if entry["event"] == "client"}
        assert peers == {"{}:{}".format(*client.getsockname()) for client in clients}
        for client in clients:
            client.close()


def test_workers_on_all_interfaces_serve_ipv4_and_ipv6(path: Path) -> None:
    with Daemon("tailsrv", path, "--workers", "2", "--port", "0") as daemon:
        for host in ("127.0.0.1", "::1") if daemon.addresses[0].startswith("[") else ("127.0.0.1",):
            with socket.create_connection((host, daemon.port()), 30) as client:
                client.sendall(b"0 now\n")
                assert read_to_end(client) == path.read_bytes()
