"""The HTTP endpoint: `/metrics` for Prometheus, `/healthz` for supervisors and load balancers.

The endpoint runs in the daemon's loop: an answer is a snapshot between two events, and nothing runs between scrapes.
Each connection carries one request, GET or HEAD, and lives for `EXCHANGE_SECONDS` at most. When there are too many
connections, the endpoint closes one for each new one: the oldest that has its answer, or else the oldest that has not
sent its request. So silent peers cannot keep a health check out. While descriptors are short, the endpoint uses the
reserve (`shortage`), because health checks matter most then.

Imported only if --metrics is given, because h11 costs memory and time to import.
"""

from __future__ import annotations

import functools
import itertools
import socket
from typing import TYPE_CHECKING, Final

import h11

from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.exposition import CONTENT_TYPE, expose
from tailsrv_runtime.listeners import bind
from tailsrv_runtime.metrics import UNEXPECTED_ERRORS, Histogram, Instrumented, Metric, unexpected_errors
from tailsrv_runtime.process_metrics import process_metrics
from tailsrv_runtime.reactor import READ, WRITE
from tailsrv_runtime.shortage import hold_descriptors, is_drawn_on, spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_formats.addresses import Address
    from tailsrv_runtime.access import AllowList
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

REQUEST_BYTES: Final = 16384
"""Limit of a request's line and headers; Apache and nginx have it within a factor of two."""

EXCHANGE_SECONDS: Final = 10.0
"""From accept to close, whatever the peer does."""

CONNECTIONS: Final = 64
"""At a time. A scraper opens one."""

CONNECTIONS_WHEN_SHORT: Final = 4
"""At a time while descriptors are short: half of the reserve."""

DISCARD_BYTES: Final = 1 << 16
"""What is read at a time of what a peer sends after its request. A socket that is closed with unread bytes sends a
reset, and a reset makes the peer lose an answer that it has not read yet."""

DISCARDED_BYTES: Final = 1 << 24
"""What is read of it at most: more than that is no request's body by mistake."""

TEXT: Final = "text/plain; charset=utf-8"
ALLOWED: Final = ("GET", "HEAD")
PATHS: Final = b"/metrics: metrics in Prometheus' text format\n/healthz: 200 when able to serve, else 503 and why\n"


class MetricsEndpoint:
    """Serves one daemon's metrics and health on the listeners of one address."""

    def __init__(self, reactor: Reactor, address: Address, allow: AllowList, server: Instrumented, log: Log) -> None:
        """Bind and serve. Raises `FatalError` if the address cannot be bound."""
        self._reactor = reactor
        self._server = server
        self._exchanges: dict[_Exchange, None] = {}  # the oldest first
        self._deadlines: Deadlines[_Exchange] = Deadlines(reactor, EXCHANGE_SECONDS, self._end, self._end)
        self._dropped = 0
        listeners = bind(address)
        self.addresses = tuple(listener.address for listener in listeners)
        self._acceptors = [
            Acceptor(reactor, listener, allow, self._connected, log, use_reserve=True) for listener in listeners
        ]

    def _connected(self, sock: socket.socket, _peer: str) -> None:
        limit = CONNECTIONS_WHEN_SHORT if is_drawn_on() else CONNECTIONS
        while len(self._exchanges) >= limit:
            self._end(min(self._exchanges, key=_worth))  # the oldest of those that are worth least
            self._dropped += 1
        exchange = _Exchange(sock)
        end = functools.partial(self._end, exchange)
        # First, because it may fail for want of memory.
        self._reactor.register(sock.fileno(), READ, functools.partial(self._step, exchange), abort=end)
        self._exchanges[exchange] = None
        self._deadlines.start(exchange)

    def _step(self, exchange: _Exchange, _mask: int) -> None:
        try:
            if exchange.is_asking:
                exchange.receive(self._respond)
                if not exchange.is_asking:
                    self._reactor.modify(exchange.sock.fileno(), WRITE)
            elif exchange.outgoing:
                if exchange.send():
                    self._reactor.modify(exchange.sock.fileno(), READ)
            elif exchange.discard():
                self._end(exchange)
        except (OSError, EOFError, h11.ProtocolError):
            self._end(exchange)

    def _respond(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for one request."""
        if method not in ALLOWED:
            return 405, TEXT, b"method not allowed; use GET or HEAD\n"
        try:
            if path == "/metrics":
                with spare_descriptors():  # for what /proc says of this process
                    return 200, CONTENT_TYPE, expose(itertools.chain(process_metrics(), self._metrics()))
            if path == "/healthz":
                why = self._server.unhealthy()
                return (200, TEXT, b"ok\n") if why is None else (503, TEXT, f"{why}\n".encode(errors="replace"))
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - a snapshot that fails is answered, reported and counted
            self._reactor.contain(error, lambda: None)
            return 500, TEXT, f"{error!r}\n".encode(errors="replace")
        return (200, TEXT, PATHS) if path == "/" else (404, TEXT, b"not found; the paths are /metrics and /healthz\n")

    def _metrics(self) -> Iterator[Metric | Histogram]:
        has_errors = False
        for metric in self._server.metrics():
            has_errors = has_errors or metric.name == UNEXPECTED_ERRORS
            yield metric
        if not has_errors:  # a server of several processes has added up the errors of all of them
            yield unexpected_errors(self._reactor)
        text = "HTTP connections that were closed to make room for others."
        yield Metric("counter", "tailsrv_http_dropped_connections", text, self._dropped)

    def _end(self, exchange: _Exchange) -> None:
        if exchange not in self._exchanges:
            return
        del self._exchanges[exchange]
        self._deadlines.cancel(exchange)
        self._reactor.unregister(exchange.sock.fileno())
        exchange.sock.close()
        if is_drawn_on():
            hold_descriptors()

    def close(self) -> None:
        """Stop listening and end what is under way."""
        for acceptor in self._acceptors:
            acceptor.close()
        for exchange in tuple(self._exchanges):
            self._end(exchange)


class _Exchange:
    """One request and its answer: asked, answered, and closed once the peer has ended too."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_asking = True
        """Whether its request is not whole yet."""
        self.outgoing = b""
        self._discarded = 0
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)

    def receive(self, respond: Callable[[str, str], tuple[int, str, bytes]]) -> None:
        """Read on; once the request is whole, prepare the answer of ``respond(method, path)``.

        What is no HTTP request gets its 4xx. Raises `EOFError` when the peer has left, `OSError` when it was reset.
        """
        try:
            data = self.sock.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._answer("", error.error_status_hint, TEXT, f"{error}\n".encode(errors="replace"))
            return
        if isinstance(event, h11.Request):
            method = event.method.decode("latin-1")
            if not event.http_version.startswith(b"1."):
                self._answer(method, 505, TEXT, b"unsupported version; use HTTP/1.0 or HTTP/1.1\n")
                return
            self._answer(method, *respond(method, _path(event.target.decode("latin-1"))))
        elif not data:
            raise EOFError

    def _answer(self, method: str, status: int, content_type: str, body: bytes) -> None:
        headers = [("content-type", content_type), ("content-length", str(len(body))), ("connection", "close")]
        if status == 405:
            headers.append(("allow", ", ".join(ALLOWED)))
        parts = [self._http.send(h11.Response(status_code=status, headers=headers))]
        if method != "HEAD":
            parts.append(self._http.send(h11.Data(data=body)))
        self.outgoing = b"".join(part for part in parts if part)
        self.is_asking = False

    def send(self) -> bool:
        """Send on. True once all is sent; then the peer is told that no more will come."""
        try:
            self.outgoing = self.outgoing[self.sock.send(self.outgoing) :]
        except BlockingIOError:
            return False
        if self.outgoing:
            return False
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def discard(self) -> bool:
        """Throw away what the peer goes on sending; True once it has ended, or has sent too much."""
        try:
            count = len(self.sock.recv(DISCARD_BYTES))
        except BlockingIOError:
            return False
        self._discarded += count
        return not count or self._discarded > DISCARDED_BYTES


def _worth(exchange: _Exchange) -> int:
    """Which exchange is given up first for a new one: what is left of it."""
    if exchange.is_asking:
        return 1
    return 2 if exchange.outgoing else 0


def _path(target: str) -> str:
    """The path of a request's target, which a proxy may send with scheme and authority; without the query."""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in {"http", "https"}:
        target = "/" + rest.partition("/")[2]
    return target.partition("?")[0]
