"""The kinds of clients, each of which connects once, does what it is known for, and leaves.

Each takes the daemon's port, how far the stream goes at the moment, and a source of randomness; it returns the bytes
that it received and has checked.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from tests.soak.stream import content
from tests.support.sockets import reset

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Client = Callable[[int, int, random.Random], int]

SECONDS = 30.0


class WrongBytesError(AssertionError):
    """A client got what does not stand at its offset."""


def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    """A connection to the daemon."""
    sock = socket.socket()
    sock.settimeout(SECONDS)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", port))
    return sock


def check(sock: socket.socket, offset: int, most: int) -> int:
    """Receive up to `most` bytes, which begin at `offset`, until the end of the stream; how many there were."""
    received = 0
    while received < most:
        data = sock.recv(min(1 << 18, most - received))
        if not data:
            break
        if data != content(offset + received, len(data)):
            raise WrongBytesError(f"wrong bytes at {offset + received}")
        received += len(data)
    return received


def leave(sock: socket.socket, source: random.Random) -> None:
    """By the door, or not."""
    reset(sock) if source.random() < 0.3 else sock.close()


def reader(port: int, end: int, source: random.Random) -> int:
    """Comes for a part of the stream, and goes when it has it."""
    start, count = source.randrange(end), source.randrange(1 << 20)
    with connect(port) as sock:
        sock.sendall(b"%d %d\n" % (start, count))
        received = check(sock, start, min(count, end - start))
        if received < min(count, end - start):
            raise WrongBytesError(f"the stream ended {received} bytes after {start}")
        leave(sock, source)
    return received


def replayer(port: int, end: int, source: random.Random) -> int:
    """Reads all there is, and must get all of it."""
    with connect(port) as sock:
        sock.sendall(b"0 now\n")
        received = check(sock, 0, 1 << 62)
        if received < end:
            raise WrongBytesError(f"the stream ended at {received}, before {end}")
        leave(sock, source)
    return received


def staller(port: int, end: int, source: random.Random) -> int:
    """Asks for everything and does not read for a while, or for ever."""
    with connect(port, receive_buffer=4096) as sock:
        sock.sendall(b"0\n")
        time.sleep(source.uniform(0.1, 2.0))
        received = check(sock, 0, min(end, source.choice([0, 1, 100_000])))
        leave(sock, source)
    return received


def liar(port: int, _end: int, source: random.Random) -> int:
    """Says what no header says, too much of it, or half of one; and gets nothing."""
    headers = [b"\n", b"GET / HTTP/1.0\r\n\r\n", b"1" * 65536, b"1 2 3", b"", b"-\n", b"0 -1\n", source.randbytes(64)]
    header = source.choice(headers)
    with connect(port) as sock, contextlib.suppress(ConnectionError, TimeoutError):
        sock.sendall(header)
        if source.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)
            if sock.recv(1):
                raise WrongBytesError(f"bytes in return for {header[:64]!r}")
        leave(sock, source)
    return 0


def chatterbox(port: int, end: int, source: random.Random) -> int:
    """Goes on talking when it should listen; the end must be no reset for that."""
    start = max(0, end - source.randrange(1, 1 << 18))
    with connect(port) as sock:
        sock.sendall(b"%d %d\n" % (start, end - start) + source.randbytes(20_000))
        received = check(sock, start, end - start)
        sock.sendall(source.randbytes(20_000))
        if received < end - start or sock.recv(1):
            raise WrongBytesError("not as many bytes as were asked for")
    return received


def passer_by(port: int, _end: int, source: random.Random) -> int:
    """Connects and leaves, again and again."""
    for _ in range(50):
        leave(connect(port), source)
    return 0


def sleeper(port: int, end: int, source: random.Random) -> int:
    """A process that is stopped and goes on; it must get what it asked for all the same."""
    start = max(0, end - (4 << 20))
    command = ["nc", "127.0.0.1", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"%d %d\n" % (start, end - start))
        process.stdin.close()
        process.send_signal(signal.SIGSTOP)
        time.sleep(source.uniform(0.1, 1.0))
        process.send_signal(signal.SIGCONT)
        data, said = process.stdout.read(), process.stderr.read().decode()
    if data != content(start, end - start):
        how = f"exit code {process.returncode} {said!r}"
        raise WrongBytesError(f"{len(data)} of {end - start} bytes from {start} after a stop; nc: {how}")
    return len(data)


KINDS: dict[str, Client] = {
    client.__name__: client for client in (reader, replayer, staller, liar, chatterbox, passer_by, sleeper)
}
