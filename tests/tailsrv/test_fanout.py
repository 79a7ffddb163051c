"""The fan-out keeps nothing of subscribers that were removed."""

from __future__ import annotations

import gc
import os
import socket
from typing import TYPE_CHECKING, cast

from tailsrv.fanout import Fanout
from tailsrv.subscriber import Subscriber
from tailsrv_runtime.reactor import READ, Reactor

if TYPE_CHECKING:
    from pathlib import Path

    from tailsrv_runtime.stream import Stream


class FakeStream:
    """A stream whose end the test sets."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.fd = os.open(path, os.O_RDONLY)
        self.end = 0
        self.committed = None
        self.has_shrunk = False


def _alive() -> int:
    gc.collect()
    return sum(type(each) is Subscriber for each in gc.get_objects())


def test_clients_that_wait_for_a_far_byte_and_disconnect_leave_no_memory_in_use(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"0123456789")
    stream = FakeStream(path)
    reactor = Reactor()
    fanout = Fanout(reactor, cast("Stream", stream), lambda _: None, lambda _: None, abort=lambda _: None)
    before = _alive()

    def join(offset: int) -> tuple[Subscriber, socket.socket]:
        sock, peer = socket.socketpair()
        subscriber = Subscriber(sock, "peer", fanout.on_event)
        subscriber.offset = offset
        reactor.register(sock.fileno(), READ, subscriber.handler)
        fanout.add(subscriber)
        return subscriber, peer

    stays, peer = join(7)
    for number in range(10_000):
        leaves, other = join((1 << 62) - number)
        fanout.remove(leaves)
        reactor.unregister(leaves.fd)
        leaves.sock.close()
        other.close()
    del leaves
    assert _alive() - before <= 3
    stream.end = 10
    fanout.advance()
    assert peer.recv(100) == b"789"
    fanout.close()
    reactor.close()
    stays.sock.close()
    peer.close()
    os.close(stream.fd)
