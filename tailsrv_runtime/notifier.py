"""Notifications to systemd: sd_notify(3), one datagram for each change of a daemon's state."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from tailsrv_runtime.reactor import WRITE

if TYPE_CHECKING:
    from tailsrv_runtime.reactor import Reactor


class Notifier:
    """Sends datagrams to the socket that NOTIFY_SOCKET names, if it names one, and never waits for its reader.

    The socket is opened at the start, because descriptors may be short later. It is connected, because epoll then
    reports when a slow reader has room again.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._waiting: list[bytes] = []
        self._socket: socket.socket | None = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def send(self, state: str, *, until_taken: bool = False) -> None:
        """Send `state`, as VARIABLE=VALUE. `until_taken`: if the socket is full, send it as soon as there is room.

        Without NOTIFY_SOCKET, or without a reader, nothing happens.
        """
        if self._socket is None:
            return
        if (self._waiting or not self._try(self._socket, state.encode())) and until_taken:
            if not self._waiting:
                self._reactor.register(self._socket.fileno(), WRITE, self._on_room)
            self._waiting.append(state.encode())

    def _try(self, sock: socket.socket, datagram: bytes) -> bool:
        """Whether the datagram was sent or cannot be; False if there is no room now."""
        for _ in range(2):
            try:
                sock.send(datagram)
            except BlockingIOError:
                return False
            except OSError:  # not connected yet, or to a socket that was replaced since
                try:
                    sock.connect(self._address)
                except (OSError, ValueError):
                    return True
            else:
                return True
        return True

    def _on_room(self, _mask: int) -> None:
        sock = self._socket
        if sock is None:
            return
        while self._waiting:
            if not self._try(sock, self._waiting[0]):
                return
            del self._waiting[0]
        self._reactor.unregister(sock.fileno())

    def close(self) -> None:
        """Close the socket. Datagrams that wait for room are lost."""
        if self._socket is not None:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None
