"""`/metrics` for Prometheus and `/healthz` for whoever decides about restarts, over HTTP.

The endpoint lives in the daemon's loop: an answer is a snapshot between two events, and nothing runs between
scrapes. Each connection carries one request. Imported only where --metrics is given, for what its imports cost.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import h11
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from tailsrv.kit.acceptor import Acceptor
from tailsrv.kit.addresses import bind
from tailsrv.kit.deadlines import Deadlines
from tailsrv.kit.measures import Histogram, Measure, Measured
from tailsrv.kit.reactor import READ, WRITE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from tailsrv.kit.access import AllowList
    from tailsrv.kit.addresses import Address
    from tailsrv.kit.logs import Log
    from tailsrv.kit.reactor import Reactor

REQUEST_BYTES: Final = 16384
REQUEST_SECONDS: Final = 10.0
CONNECTIONS: Final = 64
"""More than that at a time are turned away: a scraper opens one."""

TEXT: Final = "text/plain; charset=utf-8"


class MetricsEndpoint:
    """Serves one daemon's measures and health on the listeners of one address."""

    def __init__(self, reactor: Reactor, address: Address, allow: AllowList, measured: Measured, log: Log) -> None:
        """Bind and serve. Raises `FatalError` where the address can't be had."""
        self._reactor = reactor
        self._measured = measured
        self._exchanges: set[_Exchange] = set()
        self._deadlines: Deadlines[_Exchange] = Deadlines(reactor, REQUEST_SECONDS, self._end)
        self._registry = CollectorRegistry()
        self._registry.register(_Snapshot(measured))
        PlatformCollector(self._registry)
        ProcessCollector(registry=self._registry)
        GCCollector(self._registry)
        listeners = bind(address)
        self.addresses = tuple(listener.address for listener in listeners)
        self._acceptors = [Acceptor(reactor, listener, allow, self._connected, log) for listener in listeners]

    def _connected(self, sock: socket.socket, _peer: str) -> None:
        if len(self._exchanges) >= CONNECTIONS:
            sock.close()
            return
        exchange = _Exchange(sock)
        self._exchanges.add(exchange)
        self._deadlines.start(exchange)
        self._reactor.register(sock.fileno(), READ, lambda mask: self._step(exchange, mask))

    def _step(self, exchange: _Exchange, _mask: int) -> None:
        try:
            if not exchange.outgoing:
                target = exchange.receive()
                if target is not None:
                    exchange.answer(*self._respond(target))
                    self._reactor.modify(exchange.sock.fileno(), WRITE)
            elif exchange.send():
                self._end(exchange)
        except (OSError, EOFError):
            self._end(exchange)

    def _respond(self, target: str) -> tuple[int, str, bytes]:
        path = target.partition("?")[0]
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            why = self._measured.unhealthy()
            return (200, TEXT, b"ok\n") if why is None else (503, TEXT, f"{why}\n".encode())
        return 404, TEXT, b"there are /metrics and /healthz\n"

    def _end(self, exchange: _Exchange) -> None:
        self._exchanges.discard(exchange)
        self._deadlines.cancel(exchange)
        self._reactor.unregister(exchange.sock.fileno())
        exchange.sock.close()

    def close(self) -> None:
        """Stop listening and end what is under way."""
        for acceptor in self._acceptors:
            acceptor.close()
        for exchange in tuple(self._exchanges):
            self._end(exchange)


class _Exchange:
    """One request and its answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.outgoing = b""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)

    def receive(self) -> str | None:
        """Read on; the request's target once it is whole. Raises `EOFError` when the peer left or speaks no HTTP."""
        try:
            data = self.sock.recv(REQUEST_BYTES)
        except BlockingIOError:
            return None
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise EOFError(str(error)) from None
        if isinstance(event, h11.Request):
            return event.target.decode("latin-1")
        if not data:
            raise EOFError
        return None

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        """Prepare the answer, after which the connection ends."""
        headers = [("content-type", content_type), ("content-length", str(len(body))), ("connection", "close")]
        parts = (
            self._http.send(h11.Response(status_code=status, headers=headers)),
            self._http.send(h11.Data(data=body)),
            self._http.send(h11.EndOfMessage()),
        )
        self.outgoing = b"".join(part for part in parts if part)

    def send(self) -> bool:
        """Send on; True when all is sent."""
        try:
            self.outgoing = self.outgoing[self.sock.send(self.outgoing) :]
        except BlockingIOError:
            return False
        return not self.outgoing


class _Snapshot(Collector):
    """Shows measures as Prometheus' metric families."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for measure in self._measured.measures():
            family = families.get(measure.name)
            if family is None:
                family = families[measure.name] = _family(measure)
            _add(family, measure)
        return families.values()


def _family(measure: Measure | Histogram) -> Metric:
    labels = tuple(measure.labels)
    if isinstance(measure, Histogram):
        return HistogramMetricFamily(measure.name, measure.help, labels=labels)
    kind = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    return kind(measure.name, measure.help, labels=labels)


def _add(family: Metric, measure: Measure | Histogram) -> None:
    labels = tuple(measure.labels.values())
    if isinstance(measure, Histogram):
        assert isinstance(family, HistogramMetricFamily)  # noqa: S101 - for the type checker: _family made it
        family.add_metric(labels, list(_cumulative(measure)), measure.sum)
    else:
        assert isinstance(family, (CounterMetricFamily, GaugeMetricFamily))  # noqa: S101 - the same
        family.add_metric(labels, measure.value)


def _cumulative(histogram: Histogram) -> Iterator[tuple[str, float]]:
    bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
    return zip(bounds, itertools.accumulate(map(float, histogram.counts)), strict=True)
