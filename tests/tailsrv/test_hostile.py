"""Hostile, slow and broken clients affect only themselves; limits of the machine do not end the daemon."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.connections import ask, is_reset
from tests.support.http import scrape
from tests.support.sockets import read_exactly, read_to_end, reset
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, content, follow, serve, stalled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import Daemon

REPLAY_DESCRIPTORS = 6
"""Descriptors of the replay threads, which stay open once they have been used."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.log"
    path.write_bytes(content(MIB))
    return path


def is_served(daemon: Daemon, path: Path) -> bool:
    with ask(daemon, b"-1000 now\n") as client:
        return read_to_end(client) == path.read_bytes()[-1000:]


def wait_clean(daemon: Daemon, descriptors: int) -> None:
    wait_until(lambda: daemon.descriptors() <= descriptors, "descriptors are closed")


def context_switches(daemon: Daemon) -> int:
    """Voluntary context switches of all its threads: each is a sleep, and so a wake-up."""
    total = 0
    for task in os.listdir(f"/proc/{daemon.pid}/task"):
        with open(f"/proc/{daemon.pid}/task/{task}/status", encoding="ascii") as lines:
            total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def test_a_thousand_connections_without_a_header_use_little_memory_and_are_closed_in_time(path: Path) -> None:
    with serve(path, "--header-timeout", "1") as daemon:
        before, memory = daemon.descriptors(), daemon.memory()
        clients = [daemon.connect() for _ in range(1000)]
        assert is_served(daemon, path)
        assert daemon.memory() - memory < 4 * MIB
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        wait_clean(daemon, before)


def test_a_header_that_is_too_long_is_refused_at_once(path: Path) -> None:
    with serve(path, "--header-timeout", "30") as daemon:
        memory = daemon.memory()
        for _ in range(50):
            with ask(daemon, b"1" * 65536) as client:
                assert client.recv(1) == b""
        assert is_served(daemon, path)
        assert daemon.memory() - memory < 2 * MIB


def test_clients_that_never_read_delay_no_other_and_use_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(content(8 * MIB))
    with serve(path) as daemon, follow(daemon, path) as live:
        with ask(daemon, b"0 now\n") as first:  # starts the replay threads, which use memory
            assert read_to_end(first) == path.read_bytes()
        memory = daemon.memory()
        clients = [stalled(daemon, b"0\n") for _ in range(100)]
        for number in range(100):
            data = b"%060000d\n" % number
            append(path, data)
            assert read_exactly(live, len(data)) == data
        assert daemon.memory() - memory < 4 * MIB
        data = path.read_bytes()
        assert read_exactly(clients[50], len(data)) == data
        for client in clients:
            client.close()


def test_without_descriptors_the_daemon_pauses_accepting_does_not_spin_and_serves_later_clients(path: Path) -> None:
    limit = 64

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with serve(path, "--header-timeout", "1", preexec_fn=few) as daemon:
        clients = [daemon.connect() for _ in range(200)]
        daemon.wait_log("accepting paused")
        assert daemon.descriptors() <= limit
        before = context_switches(daemon)
        time.sleep(1)  # the period of the measurement
        assert context_switches(daemon) - before < 400
        for client in clients:
            client.close()
        assert is_served(daemon, path)
        assert daemon.stop() == 0


def test_without_descriptors_for_a_replay_thread_a_client_that_is_far_behind_is_served(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(content(8 * MIB))

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with serve(path, "--header-timeout", "30", preexec_fn=few) as daemon:
        first = daemon.connect()
        mute = [daemon.connect() for _ in range(100)]
        daemon.wait_log("accepting paused")
        first.sendall(b"0 now\n")
        assert read_to_end(first) == path.read_bytes()
        for client in (first, *mute):
            client.close()


def test_clients_that_reset_their_connections_do_not_affect_others(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    whole = content(8 * MIB)
    path.write_bytes(whole)
    with serve(path) as daemon, follow(daemon, path) as live:
        before = daemon.descriptors()
        source = random.Random(5)
        for number in range(200):
            client = ask(daemon, source.choice([b"0\n", b"-100000\n", b"0 now\n", b"12", b"", b"end\n", b"x\n"]))
            if source.random() < 0.7:
                client.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    client.recv(source.choice([1, 1000, 100_000]))
            reset(client)
            if number % 10 == 0:
                append(path, b"%05d\n" % number)
                assert read_exactly(live, 6) == b"%05d\n" % number
        wait_clean(daemon, before + REPLAY_DESCRIPTORS)
        assert "Traceback" not in daemon.log()


def test_thousands_of_short_connections_leave_no_descriptors_or_memory_in_use(path: Path) -> None:
    """A short form of the soak's 5,000 connections a second for 20 s."""
    with serve(path) as daemon, follow(daemon, path) as live:
        append(path, b"a")
        assert read_exactly(live, 1) == b"a"
        before, memory = daemon.descriptors(), daemon.memory()
        address = ("127.0.0.1", daemon.port())

        def churn() -> None:
            for number in range(1500):
                client = socket.create_connection(address, 30)
                if number % 3:
                    client.sendall(b"0\n" if number % 3 == 1 else b"0 10\n")
                client.close() if number % 2 else reset(client)

        threads = [threading.Thread(target=churn) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(20):
            append(path, b"%d" % (number % 10))
            assert read_exactly(live, 1) == b"%d" % (number % 10)
        for thread in threads:
            thread.join()
        wait_clean(daemon, before + REPLAY_DESCRIPTORS)
        assert is_served(daemon, path)
        assert daemon.memory() - memory < 8 * MIB


@pytest.mark.needs("nc")
def test_a_client_that_was_stopped_gets_everything_after_it_continues(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(b"")
    out = tmp_path / "out"
    with serve(path) as daemon, out.open("wb") as sink, ask(daemon, b"0\n") as live:
        command = ["nc", "127.0.0.1", str(daemon.port())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sink) as client:
            assert client.stdin is not None
            client.stdin.write(b"0\n")
            client.stdin.flush()
            append(path, b"begin\n")
            wait_until(lambda: out.stat().st_size == 6)
            read_exactly(live, 6)
            client.send_signal(signal.SIGSTOP)
            data = content(20 * MIB)
            for position in range(0, len(data), MIB):
                append(path, data[position : position + MIB])
                assert read_exactly(live, MIB) == data[position : position + MIB]
            client.send_signal(signal.SIGCONT)
            wait_until(lambda: out.stat().st_size == 6 + len(data))
            assert out.read_bytes() == path.read_bytes()
            client.kill()


def test_a_client_costs_less_than_2_kib(tmp_path: Path) -> None:
    """Measured by the resident set: it includes memory that Python does not account for."""
    path = tmp_path / "events.log"
    path.write_bytes(b"x")
    with serve(path) as daemon:

        def crowd(count: int) -> list[socket.socket]:
            clients = [ask(daemon, b"0\n") for _ in range(count)]
            for client in clients:
                read_exactly(client, 1)
            return clients

        clients = crowd(500)
        before = daemon.memory()
        clients += crowd(4000)
        assert (daemon.memory() - before) / 4000 < 2048
        for client in clients:
            client.close()


def test_an_idle_daemon_with_a_thousand_clients_does_not_wake_up(path: Path) -> None:
    with serve(path) as daemon:
        clients = [ask(daemon, b"-1000\n") for _ in range(1000)]
        for client in clients:
            assert len(read_exactly(client, 1000)) == 1000
        held = daemon.descriptors()
        assert is_served(daemon, path)
        wait_clean(daemon, held)
        wait_until(lambda: daemon.status("State").startswith("S"), "it sleeps")
        before = context_switches(daemon)
        time.sleep(3)  # the period of the measurement
        assert context_switches(daemon) == before
        for client in clients:
            client.close()


def test_the_start_takes_little_processor_time(path: Path) -> None:
    """Processor time: on a busy machine the time until the daemon listens would depend on other processes."""
    with serve(path) as daemon:
        with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as file:
            ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
        assert ticks / os.sysconf("SC_CLK_TCK") < 0.3


def test_no_append_is_lost_when_the_inotify_queue_overflows(tmp_path: Path) -> None:
    """While the daemon is stopped, events of other names fill its queue, and then the file grows."""
    path = tmp_path / "events.log"
    path.write_bytes(b"begin\n")
    (tmp_path / "a").touch()
    with serve(path) as daemon, ask(daemon, b"0\n") as live:
        assert read_exactly(live, 6) == b"begin\n"
        with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
            most = int(file.read())
        daemon.signal(signal.SIGSTOP)
        for _ in range(most // 2 + 2):
            # Alternating: the kernel merges an event with an identical one before it.
            (tmp_path / "a").rename(tmp_path / "b")
            (tmp_path / "b").rename(tmp_path / "a")
        append(path, b"lost by inotify\n")
        daemon.signal(signal.SIGCONT)
        assert read_exactly(live, 16) == b"lost by inotify\n"
        append(path, b"and again\n")
        assert read_exactly(live, 10) == b"and again\n"
        path.rename(tmp_path / "gone")
        assert daemon.wait() == 0


@pytest.mark.needs("strace")
@pytest.mark.parametrize(("syscall", "header"), [("pread64", b"end\n"), ("sendfile", b"0 now\n")])
def test_a_file_that_cannot_be_read_ends_the_daemon_and_the_error_names_the_offset(
    path: Path, syscall: str, header: bytes
) -> None:
    prefix = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "signal=none", "-P", str(path))
    inject = ("-e", f"trace={syscall}", "-e", f"inject={syscall}:error=EIO")
    with serve(path, prefix=(*prefix, *inject)) as daemon, ask(daemon, header) as client:
        if header == b"end\n":
            while daemon.process.poll() is None:
                append(path, b"x")  # the client's header may not have been read yet
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.process.wait(0.05)
        assert is_reset(client)  # an end would say that the file holds no more
        assert daemon.wait() == 1
        error = daemon.wait_log("failed")["error"]
        assert f"cannot read {path} at byte " in error
        assert "Input/output error" in error


def test_replays_do_not_exceed_their_rate_and_live_clients_are_not_delayed(tmp_path: Path) -> None:
    path = tmp_path / "events.log"
    whole = content(3 * MIB)
    path.write_bytes(whole)
    with (
        serve(path, "--replay-rate", str(2 * MIB), "--metrics", "127.0.0.1:0") as daemon,
        follow(daemon, path) as live,
    ):
        append(path, b"live")
        assert read_exactly(live, 4) == b"live"
        begin = time.monotonic()
        with ask(daemon, b"0 %d\n" % (3 * MIB)) as one, ask(daemon, b"%d %d\n" % (MIB, 2 * MIB)) as other:
            assert read_exactly(one, 100) == whole[:100]
            append(path, b"more")
            assert read_exactly(live, 4) == b"more"
            # The replays were not over when the live client had its bytes.
            assert scrape(daemon)["tailsrv_sent_bytes_total"] < 5 * MIB
            assert read_to_end(other) == whole[MIB:]
            assert time.monotonic() - begin > 0.7  # a second at that rate; a busy machine only takes longer
            assert read_to_end(one) == whole[100:]
            assert time.monotonic() - begin > 1.2


REPLAY = """
import socket, sys
for _ in range(4):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
        sock.sendall(b"0 %d\\n" % int(sys.argv[2]))
        received = len(sock.recv(1))
        print("begun", flush=True)
        while data := sock.recv(1 << 20):
            received += len(data)
    print(received, flush=True)
"""


def test_a_live_client_gets_appends_while_replays_are_under_way(tmp_path: Path) -> None:
    """Between the first and the last byte of each replay, a live client gets many appends."""
    path = tmp_path / "events.log"
    size = 200 * MIB
    path.write_bytes(bytes(size))
    with serve(path) as daemon, follow(daemon, path) as live:
        command = [sys.executable, "-c", REPLAY, str(daemon.port()), str(size)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as replayer:
            assert replayer.stdout is not None
            counts = []
            for _ in range(4):
                assert replayer.stdout.readline() == b"begun\n"
                counts.append(0)
                while not select.select([replayer.stdout], [], [], 0)[0]:
                    append(path, b"x")
                    assert read_exactly(live, 1) == b"x"
                    counts[-1] += 1
                assert int(replayer.stdout.readline()) == size
        # If the live client waited for a replay, or for a window of one, it would get a few appends during each.
        assert sum(counts) > 100, counts
