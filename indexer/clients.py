"""Connections: each client's requests in, its replies out, and no client delays another one.

A turn answers some requests of one client, for `TURN_SECONDS` at most; then the others have theirs. Nothing is read
from a client that has requests waiting, or replies that it does not read: it costs one buffer of each, and its socket.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tailsrv_formats.index_query import LINE_BYTES, render_error
from tailsrv_runtime.reactor import READ, WRITE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor

RECEIVE_BYTES: Final = 16384
"""Bytes of one read: two thousand short requests, so that a client that pipelines is read from rarely."""

SEND_BYTES: Final = 4096
"""Replies to a client that pipelines are sent when there are as many bytes of them, or when it has all."""

LINES_PER_TURN: Final = 32
TURN_SECONDS: Final = 0.0005
"""Seconds of a turn: fewer requests are answered if the disk has to be read."""

TOO_LONG: Final = f"request too long; the limit is {LINE_BYTES} bytes"


class Client:
    """One connection."""

    __slots__ = ("ended", "events", "lines", "outgoing", "rest", "skipping", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.events = READ
        """The events of its socket that are waited for."""
        self.lines: list[bytes] = []
        """Requests that wait to be answered, the next one last."""
        self.rest = b""
        """The beginning of a request that is not whole."""
        self.skipping = False
        """Whether the rest of a line is skipped that was too long and has been answered."""
        self.ended = False
        """Whether the client has half-closed: no more requests will come."""
        self.outgoing = b""


class Clients:
    """All connections."""

    def __init__(self, reactor: Reactor, answer: Callable[[bytes], bytes], before: Callable[[], None]) -> None:
        """``answer(line)`` returns the reply to a request without its newline.

        ``before()`` is called when requests have come, before they are answered.
        """
        self._reactor = reactor
        self._answer = answer
        self._before = before
        self._clients: set[Client] = set()
        self._waiting: list[Client] = []

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, sock: socket.socket) -> None:
        """Serve a client that has connected."""
        client = Client(sock)
        self._reactor.register(
            sock.fileno(), READ, lambda _mask: self._on_ready(client), abort=lambda: self._end(client)
        )
        self._clients.add(client)

    def close(self) -> None:
        """End all connections."""
        for client in tuple(self._clients):
            self._end(client)

    def _end(self, client: Client) -> None:
        self._clients.discard(client)
        self._reactor.unregister(client.sock.fileno())
        client.sock.close()

    def _on_ready(self, client: Client) -> None:
        if client not in self._clients:
            return
        if client.outgoing:
            self._send(client)
        elif not client.lines and not client.ended:
            self._receive(client)

    def _receive(self, client: Client) -> None:
        try:
            data = client.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end(client)
            return
        if data:
            self._split(client, data)
        else:
            client.ended = True
            if client.rest:
                # No newline will come any more: printf 1000 | nc -N …
                client.lines.append(client.rest)
        if client.lines:
            self._before()
        self._turn(client)

    def _split(self, client: Client, data: bytes) -> None:
        """Split what has come into lines. Of one that is too long, only its beginning is kept."""
        lines = (client.rest + data).split(b"\n")
        client.rest = lines.pop()
        if client.skipping and lines:
            client.skipping = False
            del lines[0]
        if client.skipping:
            client.rest = b""
        elif len(client.rest) > LINE_BYTES + 1:
            client.skipping = True
            lines.append(client.rest)
            client.rest = b""
        lines.reverse()
        client.lines = lines

    def _turn(self, client: Client) -> None:
        """Answer some of its requests."""
        replies: list[bytes] = []
        deadline = time.monotonic() + TURN_SECONDS
        while client.lines and len(replies) < LINES_PER_TURN and (not replies or time.monotonic() < deadline):
            line = client.lines.pop().removesuffix(b"\r")
            if len(line) > LINE_BYTES:
                replies.append(render_error(TOO_LONG, line.startswith(b"{")))
            else:
                replies.append(self._answer(line))
        client.outgoing += b"".join(replies)
        if client.lines and len(client.outgoing) < SEND_BYTES:
            self._yield(client)  # a send costs as much as an answer or two
        else:
            self._send(client)

    def _send(self, client: Client) -> None:
        if client.outgoing:
            try:
                sent = client.sock.send(client.outgoing)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._end(client)
                return
            client.outgoing = client.outgoing[sent:]
        if client.outgoing:
            self._wait_for(client, WRITE)
        elif client.lines:
            self._yield(client)
        elif client.ended:
            self._end(client)
        else:
            self._wait_for(client, READ)

    def _yield(self, client: Client) -> None:
        """Answer the rest of its requests after others had a turn."""
        self._wait_for(client, 0)
        self._waiting.append(client)
        if len(self._waiting) == 1:
            self._reactor.post(self._give_turns)

    def _give_turns(self) -> None:
        """Answer clients that have more requests, after every other client had a turn."""
        waiting, self._waiting = self._waiting, []
        for client in waiting:
            if client in self._clients:
                try:
                    self._turn(client)
                except Exception as error:  # noqa: BLE001 - contained, or raised again
                    self._reactor.contain(error, partial(self._end, client))

    def _wait_for(self, client: Client, events: int) -> None:
        if events != client.events:
            client.events = events
            self._reactor.modify(client.sock.fileno(), events)
