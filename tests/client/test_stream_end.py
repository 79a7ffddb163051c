"""The end of a stream is asked with `where`, and searched for at servers that do not know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tailsrv_client import Consumer
from tests.support.streams import Peer

if TYPE_CHECKING:
    import socket

STREAM = b"one\ntwo\nthree\n"


class Broadcaster:
    """Answers as tailsrv does; `knows_where`: or as 0.9 does, which closes for a header that it does not know."""

    def __init__(self, *, knows_where: bool) -> None:
        self._knows_where = knows_where
        self.headers: list[bytes] = []

    def __call__(self, sock: socket.socket) -> None:
        header = sock.recv(64)
        self.headers.append(header)
        words = header.split()
        if header == b"where\n":
            if self._knows_where:
                sock.sendall(b"0 %d\n" % len(STREAM))
        elif words[1:] == [b"now"]:
            sock.sendall(STREAM[int(words[0]) :])
        else:
            start, count = int(words[0]), int(words[1])
            sock.sendall(STREAM[start : start + count])
        sock.close()


@pytest.mark.parametrize("knows_where", [True, False])
def test_where_is_asked_once_and_a_search_is_the_fallback(knows_where: bool) -> None:
    serve = Broadcaster(knows_where=knows_where)
    with Peer(serve) as peer, Consumer(peer.address, start=-6, until="now") as consumer:
        assert [message.payload for message in consumer] == [b"three"]
    assert serve.headers.count(b"where\n") == (2 if knows_where else 1), "for the start and for the end"
    searches = sum(header.endswith(b"now\n") for header in serve.headers)
    assert (searches == 0) is knows_where


def test_a_line_in_pieces_is_put_together() -> None:
    def serve(sock: socket.socket) -> None:
        if sock.recv(64) == b"where\n":
            for byte in b"0 14\r\n":
                sock.sendall(bytes((byte,)))
        sock.close()

    with Peer(serve) as peer, Consumer(peer.address, start="end", until="now") as consumer:
        consumer.check()
        assert consumer.position.offset == 14
        assert consumer.poll() == []
        assert consumer.complete
