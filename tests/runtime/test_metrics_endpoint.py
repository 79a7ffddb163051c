"""The HTTP endpoint in a loop of its own: what a snapshot that fails costs, and who makes room for whom."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailsrv_formats.addresses import Address
from tailsrv_runtime import metrics_endpoint
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.daemon import log_contained
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.metrics import Metric
from tailsrv_runtime.metrics_endpoint import MetricsEndpoint
from tailsrv_runtime.reactor import Reactor
from tests.fuzz import fuzz_http
from tests.support.logs import RecordedLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10.0


class Server:
    """Is measured, unless it has a fault."""

    def __init__(self) -> None:
        self.fault: Exception | None = None

    def metrics(self) -> Iterator[Metric]:
        yield Metric("gauge", "tailsrv_clients", "Connected clients.", 3)
        if self.fault is not None:
            raise self.fault
        yield Metric("gauge", "tailsrv_file_bytes", "Size.", 4)

    def unhealthy(self) -> str | None:
        if self.fault is not None:
            raise self.fault
        return None


class Endpoint:
    """An endpoint in a loop that runs on a thread of its own."""

    def __init__(self) -> None:
        self.log = RecordedLog()
        self.reactor = Reactor()
        log_contained(self.reactor, self.log)
        self.server = Server()
        self.endpoint = MetricsEndpoint(self.reactor, Address(host="127.0.0.1"), AllowList(), self.server, self.log)
        host, _, port = self.endpoint.addresses[0].rpartition(":")
        self.address = host, int(port)
        self.ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.reactor.run()
        except FatalError as error:
            self.ended = error

    def in_loop(self, call: Callable[[], Any]) -> Any:
        """The result of a call on the loop's thread."""
        done = threading.Event()
        results = []

        def run() -> None:
            results.append(call())
            done.set()

        self.reactor.post(run)
        assert done.wait(PATIENCE)
        return results[0]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.in_loop(condition):
            assert time.monotonic() < deadline

    def count(self) -> int:
        return int(self.in_loop(lambda: len(self.endpoint._exchanges)))

    def connect(self, sent: bytes = b"") -> socket.socket:
        sock = socket.create_connection(self.address, PATIENCE)
        sock.sendall(sent)
        return sock

    def ask(self, path: str) -> bytes:
        with self.connect(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as sock:
            return read_to_end(sock)

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.reactor.post(self.reactor.stop)
        self.join()
        self.endpoint.close()
        self.reactor.close()


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
@pytest.mark.parametrize(
    "fault", [KeyError("a bug"), OSError(errno.EIO, os.strerror(errno.EIO)), AssertionError(), RecursionError("deep")]
)
def test_a_snapshot_that_fails_is_answered_by_500_logged_with_its_place_and_counted(
    endpoint: Endpoint, path: str, fault: Exception
) -> None:
    endpoint.server.fault = fault
    for _ in range(3):
        answer = endpoint.ask(path)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert answer.partition(b"\r\n\r\n")[2].count(b"\n") == 1
    assert [event for event, _ in endpoint.log.events] == ["unexpected error"]
    assert "test_metrics_endpoint.py" in endpoint.log.events[0][1]["at"]
    endpoint.server.fault = None
    assert b"\ntailsrv_unexpected_errors_total 3.0\n" in endpoint.ask("/metrics")
    assert endpoint.ask("/healthz").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_the_daemons_own_error_in_a_snapshot_ends_the_loop(endpoint: Endpoint, path: str) -> None:
    endpoint.server.fault = FatalError("a worker failed")
    with endpoint.connect(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()):
        endpoint.join()
    assert endpoint.ended is endpoint.server.fault


def test_the_paths_are_listed(endpoint: Endpoint) -> None:
    assert b"\r\n\r\n/metrics: " in endpoint.ask("/")


def test_peers_that_stay_with_their_answer_make_room_before_one_that_is_sending_its_request(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_endpoint, "CONNECTIONS", 4)
    honest = endpoint.connect(b"GET /healthz HTTP/1.1\r\n")
    stay = [endpoint.connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(3)]
    for peer in stay:
        assert peer.recv(12) == b"HTTP/1.1 200"
    silent = []
    for number in range(3):
        silent.append(endpoint.connect())
        endpoint.until(lambda number=number: endpoint.endpoint._dropped == number + 1)  # type: ignore[misc] # mypy can't infer a default
    assert endpoint.count() == 4
    honest.sendall(b"Host: x\r\n\r\n")
    assert read_to_end(honest).startswith(b"HTTP/1.1 200 ")
    for sock in (honest, *stay, *silent):
        sock.close()


def test_a_peer_that_sends_without_end_after_its_request_is_closed_after_a_bound(endpoint: Endpoint) -> None:
    sent = 0
    with endpoint.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n") as peer:
        assert peer.recv(12) == b"HTTP/1.1 405"
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 32:
                sent += peer.send(bytes(1 << 20))
    most = metrics_endpoint.DISCARDED_BYTES + (64 << 20)  # and what both kernels hold
    assert metrics_endpoint.DISCARDED_BYTES <= sent < most


def test_an_answer_reaches_a_peer_that_first_sends_a_long_body(endpoint: Endpoint) -> None:
    body = bytes(metrics_endpoint.DISCARDED_BYTES - (1 << 20))
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with endpoint.connect(head + body) as peer:
        assert read_to_end(peer).startswith(b"HTTP/1.1 405 ")


def test_a_peer_has_a_bounded_time_whatever_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint, "EXCHANGE_SECONDS", 0.2)
    endpoint = Endpoint()
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    peers = [endpoint.connect(sent) for sent in (b"", request[:9], request, request + b"more")]
    endpoint.until(lambda: len(endpoint.endpoint._exchanges) == 4)
    endpoint.until(lambda: not endpoint.endpoint._exchanges)
    assert endpoint.in_loop(endpoint.reactor._timeout) == -1
    for peer in peers:
        read_to_end(peer)
        peer.close()
    endpoint.close()


def test_a_connection_that_the_loop_has_no_room_for_leaves_nothing_behind(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(endpoint.reactor, "register", full)
        with endpoint.connect() as peer:
            assert peer.recv(1) == b""
    assert endpoint.count() == 0
    assert endpoint.in_loop(endpoint.reactor._timeout) == -1
    assert endpoint.ask("/healthz").startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def harness() -> Iterator[fuzz_http.Harness]:
    harness = fuzz_http.Harness()
    yield harness
    harness.close()


PIECES = st.lists(st.one_of(st.sampled_from(fuzz_http.WORDS), st.binary(max_size=20)), max_size=20)


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES)
def test_whatever_a_peer_sends_it_gets_one_response_or_none(harness: fuzz_http.Harness, pieces: list[bytes]) -> None:
    fuzz_http.assert_answered(harness, b"".join(pieces))


def test_the_fuzz_target_finds_nothing_in_random_requests(harness: fuzz_http.Harness) -> None:
    source = random.Random(7)
    for _ in range(300):
        fuzz_http.assert_answered(harness, fuzz_http.shaped(source.randbytes(source.randrange(17))))
