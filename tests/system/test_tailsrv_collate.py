"""`tailsrv-collate` as a whole: its files, its ports, its end, and peers that harm nobody but themselves."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.collators import ACK, RAW, Producer, collate, mark, messages, raw, wait_committed
from tests.support.daemons import Daemon
from tests.support.http import health, http_get
from tests.support.processes import processor_seconds
from tests.support.sockets import read_to_end, reset
from tests.support.waits import wait_quiet, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
SYNCS = ("always", "never", "interval:5")


@contextlib.contextmanager
def crowd(collator: Daemon, count: int, number: int, greeting: bytes = b"") -> Iterator[list[socket.socket]]:
    """A number of connections to one port."""
    socks = []
    try:
        for _ in range(count):
            sock = collator.connect(number)
            socks.append(sock)
            sock.sendall(greeting)
        yield socks
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("number", [RAW, ACK])
def test_a_thousand_silent_connections_cost_little_memory_and_delay_no_producer(tmp_path: Path, number: int) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        before = collator.memory()
        with crowd(collator, 1000, number):
            raw(collator, b"hello\n")
            wait_committed(path, 6)
            assert Producer(collator, "a").told() == (0, 0)
            assert collator.memory() < before + 16 * MIB
        assert collator.stop() == 0


def test_huge_lengths_are_refused_and_nothing_is_allocated_for_them(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path, "--framing", "u32be") as collator:
        before = collator.memory()
        with crowd(collator, 200, RAW, b"\xff\xff\xff\xff" + b"x" * 1000) as socks:
            for sock in socks:
                with contextlib.suppress(ConnectionResetError):
                    assert read_to_end(sock) == b""
        with crowd(collator, 200, RAW, b"\0\x0f\xff\xf0" + b"x" * 1000):
            raw(collator, b"\0\0\0\1a")
            wait_committed(path, 5)
            assert collator.memory() < before + 8 * MIB
        assert collator.stop() == 0
    assert messages(path, "u32be") == [b"a"]


@pytest.mark.parametrize("port", [RAW, ACK])
def test_lines_without_an_end_stay_within_the_buffer_and_a_holder_is_disconnected(tmp_path: Path, port: int) -> None:
    path = tmp_path / "stream"
    options = ("--buffer-bytes", str(8 * MIB), "--max-message-bytes", str(64 * MIB))
    with collate(path, *options) as collator:
        before = collator.memory()
        peak = 0

        def flood(sock: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock.sendall(b"x" * 65_536)

        with crowd(collator, 12, port, b"\n" if port == ACK else b"") as socks:
            threads = [threading.Thread(target=flood, args=(sock,), daemon=True) for sock in socks]
            for thread in threads:
                thread.start()

            def one_is_gone() -> bool:
                nonlocal peak
                peak = max(peak, collator.memory())
                return any(not thread.is_alive() for thread in threads)

            if port == RAW:
                wait_until(one_is_gone, "a connection is closed")
            closed = collator.wait_log("producer disconnected")
            assert "--buffer-bytes" in closed["error"]
            raw(collator, b"fine\n")
            wait_committed(path, 5)
            assert max(peak, collator.memory()) < before + (8 + 16) * MIB
            for sock in socks:
                with contextlib.suppress(OSError):  # those that were closed by the collator
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
        assert collator.stop() == 0


def test_slow_and_divided_messages_delay_no_other_producer(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        with collator.connect() as slow, collator.connect() as parts:
            for index in range(1000):
                slow.sendall(b"s")
                parts.sendall(b"p" * 1000)
                if index == 500:
                    raw(collator, b"fast\n")
                    wait_committed(path, 5)
            slow.sendall(b"\n")
            parts.sendall(b"\n")
            wait_committed(path, 5 + 1001 + 1_000_001)
        assert collator.stop() == 0
    assert sorted(messages(path), key=len) == [b"fast", b"s" * 1000, b"p" * 1_000_000]


def test_a_lack_of_descriptors_pauses_accepting_and_costs_no_processor_time(tmp_path: Path) -> None:
    path = tmp_path / "stream"

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with collate(path, preexec_fn=few) as collator:
        with crowd(collator, 100, RAW):
            collator.wait_log("accepting paused")
            spent = processor_seconds(collator.pid)
            time.sleep(1)  # what is asserted is that this second costs nothing
            assert processor_seconds(collator.pid) - spent < 0.3
        raw(collator, b"next\n")
        wait_committed(path, 5)
        assert collator.stop() == 0


def test_connections_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        descriptors = collator.descriptors()
        for number in range(1000):
            with collator.connect(number % 2) as sock:
                if number % 4 == 1:
                    sock.sendall(b"brief-%d\n" % number)
                elif number % 4 == 2:
                    sock.sendall(b"line\n")
        wait_committed(path, 5 * 250)
        wait_until(lambda: collator.descriptors() <= descriptors + 3, "all descriptors are given back")
        assert collator.stop() == 0
    assert messages(path) == [b"line"] * 250


@pytest.mark.parametrize("sync", ["always", "never"])
def test_a_flood_of_one_producer_does_not_delay_another_one_for_ever(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    stop = threading.Event()
    with collate(path, "--sync", sync, "--buffer-bytes", str(4 * MIB)) as collator:

        def flood() -> None:
            with collator.connect() as sock:
                while not stop.is_set():
                    sock.sendall(b"f" * 99_999 + b"\n")

        threads = [threading.Thread(target=flood) for _ in range(3)]
        for thread in threads:
            thread.start()
        producer = Producer(collator, "calm")
        assert producer.told() == (0, 0)
        for number in range(1, 51):
            producer.send(b"calm\n")
            assert producer.told()[0] == 5 * number
        stop.set()
        for thread in threads:
            thread.join()
        assert collator.memory() < 64 * MIB
        assert collator.stop() == 0
    assert messages(path).count(b"calm") == 50


def test_producers_wait_at_a_file_size_limit_and_continue_when_it_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "stream"

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))

    with collate(path, "--metrics", "127.0.0.1:0", preexec_fn=small) as collator:
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        producer.send((b"x" * 999 + b"\n") * 400)
        met = collator.wait_log("file size limit reached")
        assert met["level"] == "error"
        assert "LimitFSIZE=" in met["advice"]
        assert health(collator)[0] == 503
        assert (mark(path) or 0) <= path.stat().st_size <= 300_000
        resource.prlimit(collator.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert producer.until(400_000)[-1] == (400_000, 400_000)
        collator.wait_log("file size limit raised")
        assert health(collator)[0] == 200
        assert collator.stop() == 0
    assert path.read_bytes() == (b"x" * 999 + b"\n") * 400


def test_a_stream_is_three_files_that_the_group_may_read(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"one\n")
        wait_committed(path, 4)
        for name in ("stream", "stream.commit", "stream.producers"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
        assert collator.stop() == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["stream", "stream.commit", "stream.producers"]


def test_a_second_collator_of_a_file_exits_1_and_names_the_process_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as first, collate(path, ready=False) as second:
        assert second.wait() == 1
        assert f"process {first.pid}" in second.events()[-1]["error"]


def test_a_collator_exits_0_when_its_file_is_moved_and_1_when_it_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"one\n")
        wait_committed(path, 4)
        path.rename(tmp_path / "moved")
        assert collator.wait() == 0
        assert collator.wait_log("stream moved")
    path = tmp_path / "other"
    with collate(path) as collator:
        path.unlink()
        assert collator.wait() == 1
        assert "was deleted" in collator.events()[-1]["error"]


def test_sockets_of_a_service_manager_are_ports_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    script = (
        "import os, socket, sys\n"
        "socks = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]\n"
        "fds = [os.dup(sock.fileno()) for sock in socks]\n"
        "[sock.close() for sock in socks]\n"
        "saved = [os.dup2(fd, 20 + index) for index, fd in enumerate(fds)]\n"
        "ready = sys.argv[-1]; os.dup2(int(ready), 30, inheritable=True)\n"
        "[os.dup2(20 + index, 3 + index) for index in range(2)]\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='ack:lines')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'collator', sys.argv[4], '--ready-fd', '30'])\n"
    )
    launcher = tmp_path / "handover.py"
    launcher.write_text(script)
    with Daemon("tailsrv-collate", path, prefix=(sys.executable, str(launcher))) as collator:
        assert len(collator.addresses) == 2
        raw(collator, b"one\n")
        wait_committed(path, 4)
        with collator.connect(1) as sock:
            sock.sendall(b"\n")
            assert sock.recv(4) == b"0 0\n"
        assert collator.stop() == 0


def test_metrics_count_what_was_committed_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path, "--metrics", "127.0.0.1:0") as collator:
        raw(collator, b"one\ntwo\nthree")
        wait_committed(path, 14)
        sock = collator.connect()
        sock.sendall(b"half")
        reset(sock)
        collator.wait_log("incomplete message dropped")
        text = http_get(collator, "/metrics")
        for expected in (
            "tailsrv_collate_messages_total 3.0",
            "tailsrv_collate_bytes_total 14.0",
            'tailsrv_collate_dropped_total{lane="raw",reason="reset"} 1.0',
            'tailsrv_collate_completed_total{lane="raw"} 1.0',
            'tailsrv_collate_accepted_total{lane="raw"} 2.0',
            "tailsrv_collate_commit_bytes_bucket",
            "tailsrv_collate_commit_seconds_count",
            "tailsrv_collate_buffered_bytes",
            "tailsrv_collate_last_commit_seconds",
        ):
            assert expected in text
        assert health(collator) == (200, "ok\n")
        assert collator.stop() == 0


@pytest.mark.parametrize("sync", SYNCS)
def test_a_collator_with_a_silent_producer_never_wakes_up(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync) as collator, collator.connect() as sock:
        sock.sendall(b"one\n")
        wait_committed(path, 4)
        wait_quiet(lambda: collator.status("voluntary_ctxt_switches"), 0.5)  # the last sync is over
        before = int(collator.status("voluntary_ctxt_switches"))
        sock.settimeout(2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert int(collator.status("voluntary_ctxt_switches")) == before


@contextlib.contextmanager
def holders(collator: Daemon, count: int, size: int, *, port: int, trickle: bool) -> Iterator[None]:
    """Connections that hold incomplete messages, and come again when they are closed."""
    stop = threading.Event()
    greeting = b"\n" if port == ACK else b""

    def hold() -> None:
        socks: list[socket.socket] = []
        while not stop.is_set():
            while len(socks) < count:
                sock = collator.connect(port)
                sock.setblocking(True)
                with contextlib.suppress(OSError):
                    sock.sendall(greeting + b"x" * size)
                sock.setblocking(False)
                socks.append(sock)
            alive = []
            for sock in socks:
                try:
                    if trickle:
                        sock.send(b"x")
                    if port == RAW and not sock.recv(100):
                        raise ConnectionResetError  # closed, one way or the other
                    alive.append(sock)
                except BlockingIOError:
                    alive.append(sock)
                except OSError:
                    sock.close()
            socks = alive
            stop.wait(0.05)
        for sock in socks:
            with contextlib.suppress(OSError):
                reset(sock)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize("port", [RAW, ACK])
def test_large_messages_get_through_among_many_incomplete_ones(tmp_path: Path, port: int, trickle: bool) -> None:
    path = tmp_path / "stream"
    with (
        collate(path, "--sync", "never", "--buffer-bytes", str(4 * MIB)) as collator,
        holders(collator, 60, 90 * 1024, port=port, trickle=trickle),
    ):
        collator.wait_log("producer disconnected")  # the buffer is full of them
        producer = Producer(collator, "honest")
        assert producer.told() == (0, 0)
        message = b"h" * (200 * 1024 - 1) + b"\n"
        for number in range(1, 21):
            for start in range(0, len(message), 20_000):
                producer.send(message[start : start + 20_000])
                time.sleep(0.001)
            assert producer.until(number * len(message))[-1][0] == number * len(message)


def test_a_producer_that_is_closed_for_lack_of_room_learns_that_it_may_try_again(tmp_path: Path) -> None:
    with collate(tmp_path / "stream", "--buffer-bytes", str(MIB)) as collator:
        socks = [collator.connect(ACK) for _ in range(60)]
        for sock in socks:
            sock.sendall(b"\n" + b"x" * 30_000)
        wait_until(lambda: "producer disconnected" in collator.log(), "one has to go")
        oldest = socks[0]
        lines = b""
        while b"error:" not in lines or not lines.endswith(b"\n"):
            lines += oldest.recv(4096)
        assert lines.startswith(b"0 0\nerror: busy, ")
        for sock in socks:
            sock.close()


def test_what_connections_in_the_accept_queue_sent_before_sigterm_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        collator.signal(signal.SIGSTOP)
        for number in range(200):
            raw(collator, b"line %03d\n" % number)
        collator.signal(signal.SIGTERM)
        collator.signal(signal.SIGCONT)
        assert collator.wait() == 0
    assert sorted(path.read_bytes().splitlines()) == [b"line %03d" % number for number in range(200)]


@pytest.mark.parametrize("sync", ["always", "never"])
def test_what_was_sent_before_sigterm_is_committed_even_if_it_exceeds_the_buffer(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync, "--buffer-bytes", "262144") as collator:
        socks = [collator.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(b"hello\n")
        wait_committed(path, 120)
        collator.signal(signal.SIGSTOP)
        for sock in socks:
            sock.sendall((b"x" * 999 + b"\n") * 100)
        collator.signal(signal.SIGTERM)
        collator.signal(signal.SIGCONT)
        assert collator.wait() == 0
        for sock in socks:
            sock.close()
    assert path.stat().st_size == 120 + 20 * 100_000


@pytest.mark.parametrize("sync", SYNCS)
def test_what_was_sent_before_sigterm_is_committed(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync) as collator:
        socks = [collator.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(b"hello\n")
        wait_committed(path, 120)
        collator.signal(signal.SIGSTOP)
        for sock in socks:
            sock.sendall(b"x" * 299_999 + b"\nincomplete")
        collator.signal(signal.SIGTERM)
        collator.signal(signal.SIGCONT)
        assert collator.wait() == 0
        for sock in socks:
            sock.close()
    assert path.stat().st_size == 120 + 20 * 300_000
    assert wait_committed(path, 120 + 20 * 300_000)
