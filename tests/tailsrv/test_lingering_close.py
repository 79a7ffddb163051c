"""Ending connections costs nothing while there is nothing to do."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tailsrv.lingering_close import LingeringClose
from tailsrv_runtime.reactor import READ
from tests.support.loops import turn_until
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from tailsrv_runtime.reactor import Reactor


def test_a_peer_that_has_ended_and_does_not_read_does_not_turn_the_loop(reactor: Reactor) -> None:
    """As `echo 0 now | nc -N … | less` is. Each event of a hang-up that is waiting would be one more round."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(PATIENCE)
        peer.connect(server.getsockname())
        sock, _ = server.accept()
        sock.setblocking(False)
        sent = sock.send(bytes(1 << 20))
        peer.shutdown(socket.SHUT_WR)
        closer = LingeringClose(reactor)
        reactor.register(sock.fileno(), READ, lambda _mask: None)
        closer.close_gracefully(sock)
        rounds = 0

        def count() -> None:
            nonlocal rounds
            rounds += 1

        reactor.after_round(count)
        reactor.call_later(0.3, reactor.stop)
        reactor.run()
        assert rounds < 10
        assert len(closer) == 1
        reactor.post(lambda: None)
        received = 0
        while received < sent:
            received += len(peer.recv(1 << 16))
        assert peer.recv(1) == b""
        turn_until(reactor, lambda: not len(closer))
