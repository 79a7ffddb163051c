"""What the broadcaster's tests share."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
from typing import TYPE_CHECKING, Any

from tests.support.daemons import Daemon
from tests.support.sockets import read_exactly
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def serve(path: Path, *options: str, **settings: Any) -> Daemon:
    """A broadcaster of the file at `path` on a port of its own."""
    return Daemon("tailsrv", path, "--listen", "127.0.0.1:0", *options, **settings)


def ask(daemon: Daemon, header: bytes, number: int = 0) -> socket.socket:
    """A connection that has sent a header (or what is to be taken for one)."""
    sock = daemon.connect(number)
    sock.sendall(header)
    return sock


def follow(daemon: Daemon, path: Path) -> socket.socket:
    """A client that has all that the file, which is not empty, holds."""
    sock = ask(daemon, b"-1\n")
    assert read_exactly(sock, 1) == path.read_bytes()[-1:]
    return sock


def content(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two stretches are alike, so that a wrong offset shows."""
    return random.Random(seed).randbytes(size)


def append(path: Path, data: bytes) -> None:
    """One write at the end of the file."""
    with path.open("ab", buffering=0) as file:
        written = file.write(data)
    assert written == len(data)


def stalled(daemon: Daemon, header: bytes) -> socket.socket:
    """A client that reads nothing, and has the smallest buffer that the kernel gives."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", daemon.port()))
    sock.sendall(header)
    return sock


def is_reset(sock: socket.socket) -> bool:
    """Read to the end; whether that was a reset."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass
        return False
    return True


def describe(daemon: Daemon, client: socket.socket) -> dict[str, Any]:
    """What the daemon's log says of a client, on SIGUSR1, once its header has been read."""
    peer = "{}:{}".format(*client.getsockname())
    found: list[dict[str, Any]] = []

    def asked() -> bool:
        before = len(daemon.events())
        daemon.signal(signal.SIGUSR1)
        wait_until(lambda: any(each.get("peer") == peer for each in daemon.events()[before:]))
        found[:] = [each for each in daemon.events()[before:] if each.get("peer") == peer]
        return bool(found[-1]["state"] != "awaiting header")

    wait_until(asked, "the header is read")
    return found[-1]


def listens(port: int) -> bool:
    """Whether anybody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
