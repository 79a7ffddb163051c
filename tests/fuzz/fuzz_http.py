"""Fuzz target: the HTTP endpoint of `--metrics`, in a real loop.

Invariant: whatever a peer sends, in whatever pieces, it gets one well-formed HTTP/1.1 response or none; only GET and
HEAD get 200, and HEAD no body; the status is the same for the bytes as a whole and in small pieces. The loop contains
no error, and when the peer has ended nothing is left of it: no exchange, no deadline, no descriptor.

    python -m tests.fuzz.fuzz_http [atheris' options]
"""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import TYPE_CHECKING

from tailsrv_formats.addresses import Address
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.metrics import Metric
from tailsrv_runtime.metrics_endpoint import REQUEST_BYTES, MetricsEndpoint
from tailsrv_runtime.reactor import Reactor
from tests.fuzz.campaign import run

if TYPE_CHECKING:
    from collections.abc import Iterable

METHODS = (b"GET ", b"HEAD ", b"POST ", b"CONNECT ", b"OPTIONS ", b"get ", b"PRI ", b"")
TARGETS = (b"/metrics", b"/healthz", b"/", b"*", b"host:80", b"http://host/healthz", b"/healthz?x=1#y", b"/%00", b"")
VERSIONS = (b" HTTP/1.1\r\nHost: x\r\n", b" HTTP/1.0\r\n", b" HTTP/1.1\r\n", b" HTTP/2.0\r\n", b" HTTP/1.1\n", b"\r\n")
WORDS = (
    *(*METHODS, *TARGETS, *VERSIONS, b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    *(b"Host: x\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"Upgrade: h2c\r\n", b"X: ", b": "),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"x" * 5000),
    *(b"Expect: 100-continue\r\n", b" ", b"\t", b"\0", b"\xff", b"\x16\x03\x01\x02\x00"),
)
STATUSES = frozenset({200, 400, 404, 405, 431, 501, 505})
TURNS = 100
MOST_PIECES = 400


class Silent:
    """A log that nobody reads."""

    def debug(self, event: str, **facts: object) -> None:
        """Nothing."""

    info = warning = error = debug


class Server:
    """Counts something, and is well."""

    def metrics(self) -> Iterable[Metric]:
        """See `Instrumented`."""
        return [Metric("counter", "tailsrv_sent_bytes", "Bytes.", 7)]

    def unhealthy(self) -> str | None:
        """See `Instrumented`."""
        return None


class Harness:
    """An endpoint and its loop, which is turned by hand."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.reactor.after_round(self.reactor.stop)
        self._endpoint = MetricsEndpoint(self.reactor, Address(host="127.0.0.1"), AllowList(), Server(), Silent())

    def close(self) -> None:
        """Give everything back."""
        self._endpoint.close()
        self.reactor.close()

    def _turn(self) -> None:
        self.reactor.post(lambda: None)
        self.reactor.run()

    def talk(self, pieces: Iterable[bytes]) -> bytes:
        """What a peer gets that sends these pieces, one a turn, and ends its side."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._endpoint._connected(ours, "peer")
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    theirs.sendall(piece)
                    self._turn()
                theirs.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                for _ in range(TURNS):
                    self._turn()
                    if not self._endpoint._exchanges:
                        break
                while chunk := theirs.recv(1 << 16):
                    answer += chunk
        assert not self._endpoint._exchanges
        assert self.reactor._timeout() == -1
        assert self.reactor.contained == 0
        assert ours.fileno() == -1
        return answer


def judge(answer: bytes) -> tuple[int, bytes] | None:
    """Status and body of an answer that is well-formed; nothing for none."""
    if not answer:
        return None
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator
    first, *lines = head.decode("ascii").split("\r\n")
    version, status, *_ = first.split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert version == "HTTP/1.1"
    assert headers["connection"] == "close"
    assert ("allow" in headers) == (status == "405")
    assert len(body) in {0, int(headers["content-length"])}
    return int(status), body


def assert_answered(harness: Harness, data: bytes) -> None:
    """Check the invariant."""
    whole = judge(harness.talk([data] if data else []))
    if whole is None:
        assert not data.strip()
        return
    status, body = whole
    assert status in STATUSES
    method = data.lstrip().split(b" ", 1)[0]
    if status in {200, 404}:
        assert method in {b"GET", b"HEAD"}
    if status == 405:
        assert method not in {b"GET", b"HEAD"}
    if status in {200, 404, 405, 505}:  # otherwise it is not known whether HEAD was meant
        assert bool(body) == (method != b"HEAD")
    if len(data) <= REQUEST_BYTES:
        step = 1 + len(data) // MOST_PIECES
        piecewise = judge(harness.talk(data[index : index + step] for index in range(0, len(data), step)))
        assert piecewise is not None
        assert piecewise[0] == status


def shaped(data: bytes) -> bytes:
    """The same entropy spent on what requests are made of, in their order."""
    method, target, version, *rest = (*data[:16], 0, 0, 0)
    end = b"\r\n" if len(data) % 4 else b""
    return b"".join(
        (
            METHODS[method % len(METHODS)],
            TARGETS[target % len(TARGETS)],
            VERSIONS[version % len(VERSIONS)],
            *(WORDS[byte % len(WORDS)] for byte in rest[:-3]),
            end,
        )
    )


@functools.cache
def _harness() -> Harness:
    return Harness()


def assert_input(data: bytes) -> None:
    """Check the invariant, with one endpoint for the whole campaign."""
    assert_answered(_harness(), data)


if __name__ == "__main__":
    run(assert_input, lambda data: assert_input(shaped(data)))
