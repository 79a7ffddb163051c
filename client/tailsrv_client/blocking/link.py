"""One lane on blocking sockets, in a thread of its own: connects, sends, hears, and connects again.

It holds `guard` whenever it touches the lane or its source, so that others may add to the source under it.
"""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.blocking.connection import Conversation, Line, SuspendedError
from tailsrv_client.errors import GaveUpError
from tailsrv_client.protocol.dialogue import persistently
from tailsrv_client.protocol.servers import EndedError
from tailsrv_client.protocol.session import RECEIVE_BYTES, greet
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tailsrv_client.protocol.dialogue import Talk
    from tailsrv_client.protocol.servers import Rotation
    from tailsrv_client.protocol.session import Acked, Lane

SEND_BYTES: Final = 1 << 18
JOIN_SECONDS: Final = 0.5

LOOK_SECONDS: Final = 1.0
"""While there is no connection: how often to look whether something has been waiting for too long."""

STEADY_SECONDS: Final = 5.0
"""A connection that lasts for this long has worked, though nothing was sent on it."""


class Link:
    """Keeps `lane` connected.

    `acknowledged` is called with each `Acked`, `failed` once with what ends it for good, both under `guard`;
    `tell` hears one sentence whenever a connection is lost or can't be had. After `outage` seconds without an
    acknowledgement while something is unacknowledged it ends with `GaveUpError` (None: never).
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
        outage: float | None = None,
    ) -> None:
        self.lane = lane
        self._rotation = rotation
        self._guard = guard
        self._acknowledged, self._failed, self._tell = acknowledged, failed, tell
        self._outage = outage
        self._waiting_since: float | None = None
        self._asleep = False
        self._stopping = False
        self._line = Line()
        self.thread = start(self._run, "tailsrv-producer")

    def wake(self) -> None:
        """There is more in the source."""
        if self._asleep:
            self._asleep = False
            self._line.interrupt.nudge()

    def close(self) -> None:
        """End the connection and the thread, whatever it waits for. What is not acknowledged stays in the source."""
        self._stopping = True
        self._line.stop()
        if threading.current_thread() is not self.thread:
            self.thread.join(JOIN_SECONDS)

    def forget(self) -> None:
        """In a forked child: the connection and the thread are the parent's; close our copy of the descriptor."""
        sock, self._line.socket = self._line.socket, None
        if sock is not None:
            sock.close()

    def _run(self) -> None:
        pause = 0.0
        try:
            while not self._stopping:
                pause = self._connect(pause)
        except SuspendedError:
            pass  # closed
        except Exception as error:
            with self._guard:
                self._failed(error)
                self._guard.notify_all()
            if not isinstance(error, TailsrvError):
                raise
        finally:
            self._line.drop()

    def _connect(self, pause: float) -> float:
        """One connection, until it is lost. Returns the seconds to wait before the next one."""
        rotation = self._rotation
        talk = persistently(rotation, self._greeting, self._tell, first=pause)
        conversation = Conversation(self._line, talk)
        self._asleep = False
        while True:
            look = None if self._outage is None else time.monotonic() + LOOK_SECONDS
            try:
                conversation.go_on(self._earlier(look, self._gives_up_at()))
                break
            except SuspendedError:
                if self._stopping:
                    conversation.close()
                    raise
                self._raise_if_late()
        sock = self._line.socket
        if sock is None or self._stopping:
            raise SuspendedError
        begin = time.monotonic()
        try:
            self._serve(sock)
        except OSError as error:
            if self._stopping:
                raise SuspendedError from None
            if time.monotonic() - begin >= STEADY_SECONDS:
                rotation.worked()
            pause = rotation.failed(error)
            self._tell(f"{rotation.trouble}; next: {rotation.address}")
        return pause

    def _greeting(self) -> Talk[None]:
        return greet(self._rotation, self.lane, self._heard)

    def _serve(self, sock: socket.socket) -> None:
        """One connection, until it is lost (`OSError`) or we are to stop."""
        lane, guard, interrupt = self.lane, self._guard, self._line.interrupt
        events = select.poll()
        events.register(interrupt, select.POLLIN)
        events.register(sock, select.POLLIN)
        writing = False
        while not self._stopping:
            with guard:
                # Set under the guard: whoever adds to the source afterwards sees it and wakes us.
                self._asleep = not lane.has_more
            if writing != (not self._asleep):
                writing = not writing
                events.modify(sock, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
            limit = self._gives_up_at()
            ready = events.poll(None if limit is None else max(0.0, limit - time.monotonic()) * 1000)
            for fd, event in ready:
                if fd == interrupt.fileno():
                    interrupt.clear()
                    continue
                if event & ~select.POLLOUT:
                    self._receive(sock)
                if event & select.POLLOUT:
                    self._send(sock)
            if not ready:
                self._raise_if_late()

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
            raise EndedError("ended by the collator")
        self._heard(data)

    def _heard(self, data: bytes) -> None:
        acknowledged = False
        with self._guard:
            for acked in self.lane.received(data):
                self._acknowledged(acked)
                acknowledged = True
            if acknowledged:
                self._waiting_since = None
                self._rotation.worked()
            self._guard.notify_all()
        self.lane.source.tidy()

    # --- giving up

    def _gives_up_at(self) -> float | None:
        """When something will have been unacknowledged for too long."""
        if self._outage is None:
            return None
        with self._guard:
            source = self.lane.source
            if not source.has_message(max(source.start, self.lane.acked)):
                self._waiting_since = None
                return None
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            return self._waiting_since + self._outage

    def _raise_if_late(self) -> None:
        limit = self._gives_up_at()
        if limit is not None and time.monotonic() >= limit:
            trouble = self._rotation.trouble or f"{self._rotation.address} acknowledges nothing"
            raise GaveUpError(f"no acknowledgement for {self._outage} s ({trouble})")

    @staticmethod
    def _earlier(*limits: float | None) -> float | None:
        return min((limit for limit in limits if limit is not None), default=None)
