"""A peer can harm itself alone."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.collators import ACK, RAW, Producer, collate, mark, messages, raw, wait_committed
from tests.support.http import health
from tests.support.processes import processor_seconds
from tests.support.sockets import read_to_end
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemons import Daemon

MIB = 1 << 20


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
def test_a_thousand_silent_connections_cost_little_and_hinder_nobody(tmp_path: Path, number: int) -> None:
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
def test_lines_without_an_end_stay_within_the_buffer_and_the_longest_has_to_go(tmp_path: Path, port: int) -> None:
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


def test_a_message_in_single_bytes_and_one_in_a_thousand_parts_hinder_nobody(tmp_path: Path) -> None:
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


def test_with_few_descriptors_it_pauses_lives_and_serves_the_next(tmp_path: Path) -> None:
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
def test_a_flood_does_not_keep_others_from_their_turn(tmp_path: Path, sync: str) -> None:
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


def test_producers_wait_at_a_limit_of_the_files_size_and_go_on_by_themselves_when_it_is_raised(tmp_path: Path) -> None:
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
