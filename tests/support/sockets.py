"""Reading from sockets, ending them, and ports for programs that cannot choose one."""

from __future__ import annotations

import socket
import struct


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """The next `count` bytes; fewer if the peer ends before."""
    received = bytearray()
    while len(received) < count:
        chunk = sock.recv(min(count - len(received), 1 << 20))
        if not chunk:
            break
        received += chunk
    return bytes(received)


def read_to_end(sock: socket.socket) -> bytes:
    """All bytes until the peer ends."""
    received = bytearray()
    while chunk := sock.recv(1 << 20):
        received += chunk
    return bytes(received)


def reset(sock: socket.socket) -> None:
    """Close a connection with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def free_port() -> int:
    """A port that was free a moment ago, for a program whose configuration has to name one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
