"""Detection of peers that died while bytes were in flight; live peers that do not read stay connected."""

from __future__ import annotations

import contextlib
import ctypes
import socket
from typing import TYPE_CHECKING

import pytest

from tailsrv import dead_peers
from tailsrv.dead_peers import DeadPeers, in_flight
from tailsrv_runtime.reactor import Reactor
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

SO_ATTACH_FILTER = 26


def go_deaf(sock: socket.socket) -> None:
    """Have the kernel drop everything that arrives for this socket, as if its machine had lost power."""
    instruction = ctypes.create_string_buffer(b"\x06\x00\x00\x00\x00\x00\x00\x00", 8)  # BPF: return 0 bytes
    program = (1).to_bytes(8, "little") + ctypes.addressof(instruction).to_bytes(8, "little")
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def fill(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Four connections: the sockets of our side and of the peer."""
    pairs = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(4):
            peer = socket.create_connection(listener.getsockname(), PATIENCE)
            pairs.append((listener.accept()[0], peer))
    yield pairs
    for ours, peer in pairs:
        ours.close()
        peer.close()


@pytest.mark.needs("socket-filter")
def test_dead_peers_are_found_and_live_peers_that_do_not_read_are_not(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_peers, "DEAD_SECONDS", 1.5)
    monkeypatch.setattr(dead_peers, "CHECK_SECONDS", 0.2)
    (idle, _), (stalled, _), (dead, deaf), (dead_and_full, deaf_too) = pairs
    fill(stalled)
    for ours, peer in ((dead, deaf), (dead_and_full, deaf_too)):
        ours.send(b"first")
        assert peer.recv(5) == b"first"
        go_deaf(peer)
    dead.send(b"lost")
    fill(dead_and_full)
    reactor = Reactor()
    found: list[socket.socket] = []
    alive = {ours for ours, _ in pairs}

    def died(sock: socket.socket) -> None:
        found.append(sock)
        alive.discard(sock)
        if len(found) == 2:
            reactor.stop()

    looks = DeadPeers(reactor, lambda: alive, died, died)
    looks.watch()
    reactor.run()
    reactor.close()
    assert set(found) == {dead, dead_and_full}
    flight = in_flight(stalled)
    assert flight is not None
    assert flight.any
    assert alive == {idle, stalled}


def test_the_checks_end_when_everything_has_arrived(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_peers, "DEAD_SECONDS", 0.2)
    monkeypatch.setattr(dead_peers, "SLACK_SECONDS", 0.01)
    monkeypatch.setattr(dead_peers, "CHECK_SECONDS", 0.01)
    ours, peer = pairs[0]
    fill(ours)
    peer.setblocking(False)
    reactor = Reactor()
    looked: list[bool] = []

    def sockets() -> list[socket.socket]:
        flight = in_flight(ours)
        looked.append(flight is not None and flight.any)
        if len(looked) == 3:
            with contextlib.suppress(BlockingIOError):
                while peer.recv(1 << 20):
                    pass
            reactor.call_later(1.0, reactor.stop)
        return [ours]

    died: list[socket.socket] = []
    looks = DeadPeers(reactor, sockets, died.append, died.append)
    looks.watch()
    reactor.run()
    reactor.close()
    assert not died
    assert not looks.watching
    assert looked[:3] == [True] * 3
    assert looked.count(False) <= 1


def test_unix_sockets_and_closed_sockets_have_no_counters() -> None:
    left, right = socket.socketpair()
    left.close()
    assert in_flight(left) is None
    assert in_flight(right) is None
    right.close()


def test_an_error_in_the_check_of_one_connection_closes_it_and_the_others_are_checked(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_peers, "DEAD_SECONDS", 0.0)
    monkeypatch.setattr(dead_peers, "SLACK_SECONDS", 0.01)
    looked: list[socket.socket] = []

    def in_flight(sock: socket.socket) -> None:
        looked.append(sock)
        if sock is pairs[1][0]:
            raise ZeroDivisionError("planted")

    monkeypatch.setattr(dead_peers, "in_flight", in_flight)
    reactor = Reactor()
    aborted: list[socket.socket] = []
    reactor.call_later(0.1, reactor.stop)
    DeadPeers(reactor, lambda: [ours for ours, _ in pairs], lambda _: None, aborted.append).watch()
    reactor.run()
    reactor.close()
    assert aborted == [pairs[1][0]]
    assert set(looked) == {ours for ours, _ in pairs}
    assert reactor.contained == 1
