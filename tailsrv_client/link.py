"""One lane on blocking sockets, in a thread of its own: connects, sends, hears, and connects again.

It holds `guard` whenever it touches the lane or its source, so that others may add to the source under it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from tailsrv.client import CONNECT_SECONDS, connect
from tailsrv_client.errors import ClientError
from tailsrv_client.threads import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.client import Rotation
    from tailsrv_client.lane import Acked, Lane

SEND_BYTES: Final = 1 << 18
RECEIVE_BYTES: Final = 1 << 16
JOIN_SECONDS: Final = 0.5
GREETING_SECONDS: Final = 10.0
"""How long a collator may take to say where to go on."""


class Link:
    """Keeps `lane` connected.

    `acknowledged` is called with each `Acked`, `failed` once with what ends it for good, both under `guard`;
    `tell` hears one sentence whenever a connection is lost or can't be had.
    """

    def __init__(
        self,
        rotation: Rotation,
        lane: Lane,
        *,
        guard: threading.Condition,
        acknowledged: Callable[[Acked], None],
        failed: Callable[[Exception], None],
        tell: Callable[[str], None],
    ) -> None:
        self.lane = lane
        self._rotation = rotation
        self._guard = guard
        self._acknowledged, self._failed, self._tell = acknowledged, failed, tell
        self._asleep = False
        self._stopping = False
        self._socket: socket.socket | None = None
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = start(self._run, "tailsrv-producer")

    def wake(self) -> None:
        """There is more in the source."""
        if self._asleep:
            self._asleep = False
            self._notify()

    def close(self) -> None:
        """End the connection and the thread. What is not acknowledged stays in the source.

        Does not wait for a connection that is being made: the thread ends when that has succeeded or failed.
        """
        with self._guard:
            self._stopping = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # not connected any more: what was wanted
                    self._socket.shutdown(socket.SHUT_RDWR)
        self._notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)

    def _notify(self) -> None:
        with self._guard:
            if self._event >= 0:
                os.eventfd_write(self._event, 1)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._connect()
        except Exception as error:
            with self._guard:
                self._failed(error)
                self._guard.notify_all()
            if not isinstance(error, ClientError):
                raise
        finally:
            with self._guard:
                os.close(self._event)
                self._event = -1

    def _connect(self) -> None:
        try:
            with connect(self._rotation.address, CONNECT_SECONDS) as sock:
                self._socket = sock
                if not self._stopping:
                    self._serve(sock)
        except OSError as error:
            if not self._stopping:
                address = self._rotation.address
                pause = self._rotation.failed()
                self._tell(f"{address}: {error.strerror or error}; next: {self._rotation.address}")
                self._wait(pause)
        finally:
            self._socket = None

    def _wait(self, seconds: float) -> None:
        """Sleep, but for `close`: what is new in the source can wait for the connection."""
        self._asleep = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        if seconds and not self._stopping:
            waiting = select.poll()
            waiting.register(self._event, select.POLLIN)
            waiting.poll(seconds * 1000)

    def _serve(self, sock: socket.socket) -> None:
        """One connection, until it is lost (`OSError`) or we are to stop."""
        lane, guard = self.lane, self._guard
        sock.settimeout(GREETING_SECONDS)
        sock.sendall(lane.opening())
        while not lane.greeted and not self._stopping:
            self._receive(sock)
        sock.setblocking(False)
        events = select.poll()
        events.register(self._event, select.POLLIN)
        events.register(sock, select.POLLIN)
        writing = False
        while not self._stopping:
            with guard:
                # Set under the guard: whoever adds to the source afterwards sees it and wakes us.
                self._asleep = not lane.has_more
            if writing != (not self._asleep):
                writing = not writing
                events.modify(sock, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
            for fd, event in events.poll():
                if fd == self._event:
                    os.eventfd_read(self._event)
                    continue
                if event & ~select.POLLOUT:
                    self._receive(sock)
                if event & select.POLLOUT:
                    self._send(sock)

    def _send(self, sock: socket.socket) -> None:
        with self._guard:
            data = self.lane.outgoing(SEND_BYTES)
        if data:
            try:
                count = sock.send(data)
            except BlockingIOError:
                return
            self.lane.was_sent(count)

    def _receive(self, sock: socket.socket) -> None:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("ended by the collator")
        with self._guard:
            for acked in self.lane.received(data):
                self._acknowledged(acked)
            self._guard.notify_all()
        self.lane.source.tidy()
        self._rotation.worked()
