"""Helpers of the broadcaster's tests."""

from __future__ import annotations

import random
import signal
import socket
from typing import TYPE_CHECKING, Any

from tests.support.connections import ask
from tests.support.daemons import Daemon
from tests.support.sockets import read_exactly
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def serve(path: Path, *options: str, **settings: Any) -> Daemon:
    """A broadcaster of the file at `path` on a free port."""
    return Daemon("tailsrv", path, "--listen", "127.0.0.1:0", *options, **settings)


def follow(daemon: Daemon, path: Path) -> socket.socket:
    """A client that has received everything that the file, which is not empty, holds."""
    sock = ask(daemon, b"-1\n")
    assert read_exactly(sock, 1) == path.read_bytes()[-1:]
    return sock


def stalled(daemon: Daemon, header: bytes) -> socket.socket:
    """A client that reads nothing and has the smallest buffer that the kernel allows."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", daemon.port()))
    sock.sendall(header)
    return sock


def content(size: int, seed: int = 0) -> bytes:
    """Random bytes: bytes from a wrong offset never match."""
    return random.Random(seed).randbytes(size)


def append(path: Path, data: bytes) -> None:
    """Append by one write."""
    with path.open("ab", buffering=0) as file:
        written = file.write(data)
    assert written == len(data)


def describe(daemon: Daemon, client: socket.socket) -> dict[str, Any]:
    """The daemon's log line for a client on SIGUSR1, after it has read the client's header."""
    peer = "{}:{}".format(*client.getsockname())
    found: list[dict[str, Any]] = []

    def has_header() -> bool:
        before = len(daemon.events())
        daemon.signal(signal.SIGUSR1)
        wait_until(lambda: any(each.get("peer") == peer for each in daemon.events()[before:]))
        found[:] = [each for each in daemon.events()[before:] if each.get("peer") == peer]
        return bool(found[-1]["state"] != "awaiting header")

    wait_until(has_header, "the header is read")
    return found[-1]


def listens(port: int) -> bool:
    """Whether a process accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
