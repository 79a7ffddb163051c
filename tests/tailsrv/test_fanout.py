"""What the fan-out keeps of those who have left: nothing."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

from tailsrv.fanout import Fanout
from tailsrv.kit.reactor import READ, Reactor
from tailsrv.subscriber import Subscriber

if TYPE_CHECKING:
    from tailsrv.kit.stream import Stream


class EmptyStream:
    """A stream that has no bytes."""

    fd = -1
    end = 0
    path = "none"


def test_who_asks_for_a_far_byte_and_leaves_leaves_nothing_behind() -> None:
    reactor = Reactor()
    fanout = Fanout(reactor, cast("Stream", EmptyStream()), lambda _: None, lambda _: None, abort=lambda _: None)
    stays, peer = socket.socketpair()
    waiting = Subscriber(stays, "stays")
    reactor.register(stays.fileno(), READ, lambda _: None)
    waiting.offset = 1 << 40
    fanout.add(waiting)
    for number in range(10_000):
        sock, other = socket.socketpair()
        subscriber = Subscriber(sock, "leaves")
        subscriber.offset = (1 << 62) - number
        reactor.register(sock.fileno(), READ, lambda _: None)
        fanout.add(subscriber)
        fanout.remove(subscriber)
        reactor.unregister(sock.fileno())
        sock.close()
        other.close()
    assert len(fanout._waiting) <= 3
    assert waiting in [entry[2] for entry in fanout._waiting]
    reactor.close()
    stays.close()
    peer.close()
