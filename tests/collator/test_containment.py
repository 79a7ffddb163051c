"""An error in the work for one producer closes that producer; one in what all share ends the daemon."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from collator.batch_builder import BatchBuilder
from collator.ingress import IngressScheduler
from collator.raw_producer import RawPort
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.logs import configure
from tailsrv_runtime.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator


class PortBench:
    """A raw port in a loop of its own, without a daemon around it."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.errors: list[Exception] = []
        self.reactor.on_contained = self.errors.append
        framing = make_framing("newline")
        self.builder = BatchBuilder(framing, 1 << 20)
        log = configure("test", "error")
        self.ingress = IngressScheduler(self.reactor, self.builder, log, commit=lambda: False, busy=lambda: False)
        self.raw = RawPort(self.reactor, self.ingress, framing, log, check=True)
        self.reactor.after_round(self.reactor.stop)
        self._theirs: list[socket.socket] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.raw.connected(ours, "a peer")
        self._theirs.append(theirs)
        return theirs

    def close(self) -> None:
        for sock in self._theirs:
            sock.close()
        self.raw.close()
        self.reactor.close()


@pytest.fixture
def bench() -> Iterator[PortBench]:
    made = PortBench()
    yield made
    made.close()


@pytest.mark.parametrize("place", ["on_first", "ended", "appended"])
def test_an_unexpected_error_is_kept_to_the_producer_or_ends_the_daemon(
    bench: PortBench, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collator.raw_producer import RawProducer  # noqa: PLC0415 - patched here

    def fail(*_: object) -> None:
        raise ValueError("a bug")

    good, bad = bench.connect(), bench.connect()
    good.sendall(b"fine\n")
    bench.reactor.run()
    monkeypatch.setattr(RawProducer, place, fail)
    if place == "on_first":
        third = bench.connect()
        third.sendall(b"x")
        bench.reactor.run()
    elif place == "ended":
        bad.sendall(b"more\n")
        bench.reactor.run()
        bad.close()
        bench.reactor.run()
    else:
        bad.sendall(b"more\n")
        with pytest.raises(FatalError, match=r"unexpected error while gathering.*next start recovers"):
            bench.reactor.run()
        return
    assert [str(error) for error in bench.errors] == ["a bug"]
    monkeypatch.undo()
    good.sendall(b"still fine\n")
    bench.reactor.run()
    assert bench.builder.batch.size == (16 if place == "on_first" else 21)


def test_an_error_in_a_read_of_a_parked_producer_is_its_own(bench: PortBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from collator.raw_producer import RawProducer  # noqa: PLC0415 - patched here

    def fail(*_: object) -> None:
        raise ValueError("a bug")

    one = bench.connect()
    bench.ingress.closed = True
    one.sendall(b"a line\n")
    bench.reactor.run()
    one.close()
    assert bench.ingress.crowded
    bench.ingress.closed = False
    monkeypatch.setattr(RawProducer, "interest", fail)
    with pytest.raises(ValueError, match="a bug"):
        bench.ingress.resume()


def test_a_producer_that_the_loop_has_no_room_for_after_a_pause_is_closed_alone(
    bench: PortBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be taken, producers are off the loop; fs.epoll.max_user_watches may be used up meanwhile."""
    unlucky, lucky = bench.connect(), bench.connect()
    for peer in (unlucky, lucky):
        peer.sendall(b"one\n")
        bench.reactor.run()
    bench.ingress.closed = True
    for peer in (unlucky, lucky):
        peer.sendall(b"two\n")
        bench.reactor.run()
    register = bench.reactor.register
    refused: list[int] = []

    def full(fd: int, *arguments: Any) -> None:
        if not refused:
            refused.append(fd)
            raise OSError(errno.ENOSPC, "No space left on device")
        register(fd, *arguments)

    monkeypatch.setattr(bench.reactor, "register", full)
    bench.ingress.closed = False
    bench.ingress.resume()
    assert unlucky.recv(1) == b""
    assert not bench.errors
    assert len(bench.raw.producers) == len(bench.ingress.producers) == 1
    lucky.sendall(b"three\n")
    bench.reactor.run()
    assert bench.builder.batch.size == len(b"one\ntwo\n" * 2 + b"three\n")


def test_an_acked_producer_that_is_late_or_has_no_room_learns_that_it_may_try_again(
    bench: PortBench,
) -> None:
    from collator.acked_producer import AckedPort  # noqa: PLC0415 - one use

    acknowledged = AckedPort(bench.reactor, bench.ingress, {}, configure("test", "error"))
    theirs = []
    for _ in range(2):
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        acknowledged.connected(ours, "a peer")
        theirs.append(peer)
    theirs[1].sendall(b"name\n")
    bench.reactor.run()
    for connection in tuple(acknowledged.connections):
        if connection.name:
            connection.evicted("busy, --buffer-bytes is full")
        else:
            connection.expired()
    assert theirs[0].recv(1000) == b"error: busy, no name within 30 seconds\n"
    assert theirs[1].recv(1000).startswith(b"0 0\nerror: busy, --buffer-bytes")
    acknowledged.close()
    for peer in theirs:
        peer.close()
