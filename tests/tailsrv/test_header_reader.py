"""The header reader: headers in any pieces, each within its time limit."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tailsrv.header_reader import HeaderReader
from tailsrv.subscriber import Subscriber
from tailsrv_formats.header import WHERE, HeaderError, Request
from tests.support.logs import RecordedLog
from tests.support.loops import turn_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_runtime.reactor import Reactor


class Client:
    """A connected client and the reader of its header."""

    def __init__(self, reactor: Reactor, sock: socket.socket, peer: socket.socket, seconds: float) -> None:
        sock.setblocking(False)
        self.peer = peer
        self.log = RecordedLog()
        self.expired: list[Subscriber] = []
        self.reader = HeaderReader(
            reactor, seconds, self.log, expired=self.expired.append, abort=lambda _subscriber: None
        )
        self.subscriber = Subscriber(sock, "peer", lambda _subscriber, _mask: None)
        self.reader.add(self.subscriber)

    def read(self, data: bytes) -> object:
        """The result of the reader after the client has sent `data`."""
        self.peer.sendall(data)
        return self.reader.read(self.subscriber)


@pytest.fixture
def client(reactor: Reactor) -> Iterator[Client]:
    sock, peer = socket.socketpair()
    with contextlib.closing(sock), contextlib.closing(peer):
        yield Client(reactor, sock, peer, 0.05)


def test_a_header_in_pieces_is_complete_with_its_last_byte(client: Client) -> None:
    for piece in (b"1", b"2 ", b"3"):
        assert client.read(piece) is None
        assert client.reader.pending() == (client.subscriber,)
    assert client.read(b"\n") == Request(12, count=3)
    assert client.reader.pending() == ()
    assert client.reader.bad == 0


def test_without_new_bytes_the_header_stays_incomplete(client: Client) -> None:
    assert client.reader.read(client.subscriber) is None
    assert client.read(b"where\n") is WHERE


def test_a_bad_header_is_counted_and_logged_with_its_bytes(client: Client) -> None:
    with pytest.raises(HeaderError):
        client.read(b"nonsense\n")
    assert client.reader.bad == 1
    (facts,) = client.log.of("bad header")
    assert (facts["peer"], facts["error"]) == ("peer", "not of the form START [STOP]")
    assert "nonsense" in str(facts["header"])


def test_a_connection_that_ends_without_a_byte_is_counted_and_not_logged(client: Client) -> None:
    client.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(HeaderError):
        client.reader.read(client.subscriber)
    assert client.reader.bad == 1
    assert client.log.events == []


def test_a_header_that_is_late_is_counted_logged_and_reported(client: Client, reactor: Reactor) -> None:
    assert client.read(b"12") is None
    turn_until(reactor, lambda: bool(client.expired))
    assert client.expired == [client.subscriber]
    assert client.reader.bad == 1
    assert client.log.of("bad header")[0]["error"] == "not complete after 0.05 s"


def test_a_header_that_was_read_or_removed_has_no_time_limit(client: Client, reactor: Reactor) -> None:
    assert client.read(b"12\n") == Request(12)
    client.reader.remove(client.subscriber)
    reactor.call_later(0.1, reactor.stop)
    reactor.run()
    assert client.expired == []
