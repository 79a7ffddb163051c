"""An honest producer gets its messages through beside those that hold memory and send nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

from collator.batch_builder import Inbox
from collator.partials import PROGRESS_BYTES, Partials
from tests.support.collators import ACK, RAW, Producer, collate
from tests.support.sockets import reset
from tests.support.waits import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemons import Daemon

MIB = 1 << 20


class Holder:
    """A source that is nothing but its incomplete message."""

    def __init__(self) -> None:
        self.inbox = Inbox()

    def holds(self, size: int) -> None:
        self.inbox.partial = b"x" * size


def test_the_one_without_progress_for_longest_is_the_oldest_whoever_trickles() -> None:
    partials: Partials[Holder] = Partials()
    idle, trickling, sending, small = (Holder() for _ in range(4))
    for holder in (sending, trickling, idle, small):
        holder.holds(100)
        partials.note(holder, completed=False)
    for turn in range(1, 50):
        trickling.holds(100 + turn)
        partials.note(trickling, completed=False)
        sending.holds(100 + turn * PROGRESS_BYTES)
        partials.note(sending, completed=False)
        small.holds(50)
        partials.note(small, completed=True)  # a message whole, and another one begun
    order = []
    while (oldest := partials.oldest()) is not None:
        order.append(oldest[0])
        partials.forget(oldest[0])
    assert order == [trickling, idle, sending, small]


def test_who_would_make_progress_if_it_were_read_from_goes_last() -> None:
    partials: Partials[Holder] = Partials()
    sending, trickling, idle = Holder(), Holder(), Holder()
    for holder in (sending, trickling, idle):
        holder.holds(10)
        partials.note(holder, completed=False)
    partials.excuse(sending, PROGRESS_BYTES)
    partials.excuse(trickling, 1)
    for expected in (trickling, idle, sending):
        assert first(partials) is expected
        partials.forget(expected)


def first(partials: Partials[Holder]) -> Holder | None:
    found = partials.oldest()
    return None if found is None else found[0]


def test_who_has_completed_its_message_is_not_among_them() -> None:
    partials: Partials[Holder] = Partials()
    holder = Holder()
    holder.holds(10)
    partials.note(holder, completed=False)
    holder.holds(0)
    partials.note(holder, completed=True)
    assert partials.oldest() is None


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


def test_who_has_to_go_is_told_that_it_passes(tmp_path: Path) -> None:
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
