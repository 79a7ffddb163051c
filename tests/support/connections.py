"""Connections to a broadcaster, and the two ways in which they end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from tests.support.daemons import Daemon


def ask(daemon: Daemon, header: bytes, number: int = 0) -> socket.socket:
    """A connection to the daemon's address with this number that has sent `header`, which may be any bytes."""
    sock = daemon.connect(number)
    sock.sendall(header)
    return sock


def is_reset(sock: socket.socket) -> bool:
    """Read until the connection ends; whether it ended by a reset."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass
        return False
    return True
