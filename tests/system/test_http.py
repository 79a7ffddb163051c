"""`/metrics` and `/healthz` of every daemon: no request ends it, and health checks get their answer."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.daemons import Daemon
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LISTEN = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
DAEMONS = {
    "tailsrv": ("tailsrv", *LISTEN),
    "tailsrv --workers 2": ("tailsrv", *LISTEN, "--workers", "2"),
    "tailsrv-collate": ("tailsrv-collate", *LISTEN),
    "tailsrv-index": ("tailsrv-index", *LISTEN),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "get", "X-y.z")
TARGETS = (
    "/metrics",
    "/healthz",
    "/healthz?x=1",
    "/",
    "/nothing",
    "*",
    "host:80",
    "http://host/healthz",
    "http://host",
)


def http_address(daemon: Daemon) -> tuple[str, int]:
    host, _, port = daemon.wait_log("serving metrics")["addresses"][0].rpartition(":")
    return host, int(port)


def exchange(address: tuple[str, int], request: bytes) -> bytes:
    """Send all of it, then read to the end; nothing where the connection was reset."""
    with socket.create_connection(address, PATIENCE) as http:
        answer = b""
        with contextlib.suppress(ConnectionError):
            http.sendall(request)
            while chunk := http.recv(1 << 16):
                answer += chunk
        return answer


def ask(address: tuple[str, int], method: str, target: str, version: str = "1.1") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    answer = exchange(address, f"{method} {target} HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


@pytest.fixture(params=DAEMONS)
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "log").write_text("line\n")
    command, *options = DAEMONS[request.param]
    with Daemon(command, tmp_path / "log", *options) as daemon:
        yield daemon
        assert daemon.stop() == 0


def test_get_and_head_are_answered_and_every_other_method_is_refused(daemon: Daemon) -> None:
    address = http_address(daemon)
    for version in ("1.0", "1.1"):
        for method in METHODS:
            for target in TARGETS:
                status, headers, body = ask(address, method, target, version)
                if method in {"GET", "HEAD"}:
                    known = target.startswith(("/metrics", "/healthz", "http://")) or target == "/"
                    assert status == (200 if known else 404), (method, target)
                else:
                    assert status == 405
                    assert headers["allow"] == "get, head"
                if method == "HEAD":
                    assert body == b""
                    if target != "/metrics":  # whose length changes from one to the next
                        assert headers["content-length"] == str(len(ask(address, "GET", target)[2]))
                else:
                    assert headers["content-length"] == str(len(body))
                assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /healthz\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", b"505"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"GET /" + b"a" * 100_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
    ],
)
def test_what_is_no_request_gets_its_status_and_the_next_one_its_answer(
    daemon: Daemon, request_bytes: bytes, status: bytes
) -> None:
    address = http_address(daemon)
    answer = exchange(address, request_bytes)
    assert answer.split()[1] == status
    assert ask(address, "GET", "/healthz")[0] == 200


def test_an_answer_reaches_a_peer_that_sends_a_body_which_is_not_read(daemon: Daemon) -> None:
    address = http_address(daemon)
    request = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    assert exchange(address, request).startswith(b"HTTP/1.1 405 ")


def test_silent_peers_do_not_keep_a_health_check_out(daemon: Daemon) -> None:
    address = http_address(daemon)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(300)]
        for number, peer in enumerate(silent):
            with contextlib.suppress(ConnectionError):
                if number % 3:
                    peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: "[: number % 20])
        assert ask(address, "GET", "/healthz")[0] == 200
        assert b"tailsrv_http_dropped_connections_total" in ask(address, "GET", "/metrics")[2]


def test_a_peer_that_does_not_read_its_answer_delays_no_other_one(daemon: Daemon) -> None:
    address = http_address(daemon)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            peer = stack.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            peer.connect(address)
            peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ask(address, "GET", "/healthz")[0] == 200


@pytest.mark.parametrize("command", ["tailsrv", "tailsrv-collate", "tailsrv-index"])
def test_health_and_metrics_are_answered_while_peers_hold_all_descriptors(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").write_text("line\n")
    with (
        Daemon(command, tmp_path / "log", *LISTEN, prefix=("prlimit", "--nofile=64:64")) as daemon,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(daemon.connect())
        daemon.wait_log("accepting paused")
        address = http_address(daemon)
        silent = [stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(20)]
        for _ in range(20):
            assert ask(address, "HEAD", "/healthz")[0] == 200
            assert b"process_open_fds " in ask(address, "GET", "/metrics")[2]
        for peer in silent:
            peer.close()


def test_every_metric_is_there_once(daemon: Daemon) -> None:
    lines = ask(http_address(daemon), "GET", "/metrics")[2].decode().splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert "tailsrv_unexpected_errors_total" in series


def test_a_unix_socket_for_metrics_leaves_no_path_behind(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("line\n")
    path = tmp_path / "metrics"
    with Daemon("tailsrv", tmp_path / "log", "--listen", "127.0.0.1:0", "--metrics", f"unix:{path}") as daemon:
        assert path.exists()
        assert daemon.stop() == 0
    assert not path.exists()


PIECES = st.sampled_from(
    [b"GET ", b"HEAD ", b"/", b"/metrics", b"/healthz", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"Host: x", b": ",
     b"Content-Length: ", b"5", b"-1", b"Transfer-Encoding: chunked", b"Connection: upgrade", b"Upgrade: h2c",
     b"Expect: 100-continue", b"\0", b"\xff", b" " * 100]
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    path = tmp_path_factory.mktemp("http") / "log"
    path.write_text("line\n")
    with Daemon("tailsrv", path, *LISTEN) as daemon:
        yield daemon


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(PIECES, st.binary(max_size=40)), max_size=25))
def test_no_bytes_end_the_daemon(fuzzed: Daemon, pieces: list[bytes]) -> None:
    address = http_address(fuzzed)
    with socket.create_connection(address, PATIENCE) as http, contextlib.suppress(ConnectionError):
        http.sendall(b"".join(pieces))
        http.shutdown(socket.SHUT_WR)
        while http.recv(1 << 16):
            pass
    assert ask(address, "GET", "/healthz")[0] == 200
    assert not [entry for entry in fuzzed.events() if entry["event"] == "unexpected error"]


def test_connections_that_are_over_are_forgotten(daemon: Daemon) -> None:
    address = http_address(daemon)
    before = daemon.descriptors()
    for _ in range(200):
        ask(address, "GET", "/healthz")
        socket.create_connection(address, PATIENCE).close()
    wait_until(lambda: daemon.descriptors() <= before, "the descriptors are closed")
    assert ask(address, "GET", "/healthz")[0] == 200
