"""A connection that is being closed does not wake the daemon while it waits for its peer."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tailsrv.lingering_close import LingeringClose
from tailsrv_runtime.reactor import READ
from tests.support.loops import turn_until
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from tailsrv_runtime.reactor import Reactor


def test_a_peer_that_has_sent_its_fin_and_does_not_read_does_not_wake_the_loop(reactor: Reactor) -> None:
    """Such as `echo 0 now | nc -N … | less`. A level-triggered hang-up would be reported in every round."""
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
