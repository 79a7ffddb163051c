"""Runs one session on a blocking socket, in a thread of its own: connects, sends, receives, and reconnects.

The thread reads the source and handles the collator's lines under `guard`, because other threads append to the source
under it; reading a spool or a followed file may wait for the disk. The socket's calls, and `tidy`, run without it.
"""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.blocking.connection import Connection, DialogueRunner, SuspendedError
from tailsrv_client.errors import GaveUpError
from tailsrv_client.protocol.dialogue import retry
from tailsrv_client.protocol.servers import EndedError
from tailsrv_client.protocol.session import RECEIVE_BYTES, greet
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_client.protocol.servers import Rotation
    from tailsrv_client.protocol.session import Acked, Session

SEND_BYTES: Final = 1 << 18
JOIN_SECONDS: Final = 0.5

LOOK_SECONDS: Final = 1.0
"""How often the outage limit is checked while there is no connection."""

STEADY_SECONDS: Final = 5.0
"""A connection that lasts for this long has worked, though nothing was sent on it."""


class SessionThread:
    """Keeps `session` connected.

    `acknowledged` is called with each `Acked`, `failed` once with what ends it for good, both under `guard`;
    `on_event` is called with one sentence for each lost or failed connection. After `outage` seconds without an
    acknowledgement while something is unacknowledged it ends with `GaveUpError` (None: never).
    """

    def __init__(
        self,
        rotation: Rotation,
        session: Session,
        *,
        guard: threading.Condition,
        acknowledged: Callable[[Acked], None],
        failed: Callable[[Exception], None],
        on_event: Callable[[str], None],
        outage: float | None = None,
    ) -> None:
        self.session = session
        self._rotation = rotation
        self._guard = guard
        self._acknowledged, self._failed, self._on_event = acknowledged, failed, on_event
        self._outage = outage
        self._waiting_since: float | None = None
        self._asleep = False
        self._stopping = False
        self._connection = Connection()
        self.thread: threading.Thread = start(self._run, "tailsrv-producer")

    def wake(self) -> None:
        """There is more in the source."""
        if self._asleep:
            self._asleep = False
            self._connection.interrupt.nudge()

    def close(self) -> None:
        """End the connection and the thread, whatever it waits for. What is not acknowledged stays in the source."""
        self._stopping = True
        self._connection.stop()
        if threading.current_thread() is not self.thread:
            self.thread.join(JOIN_SECONDS)

    def forget(self) -> None:
        """In a forked child: the connection and the thread are the parent's; close our copy of the descriptor."""
        sock, self._connection.socket = self._connection.socket, None
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
            self._connection.close()

    def _connect(self, pause: float) -> float:
        """One connection, until it is lost. Returns the seconds to wait before the next one."""
        rotation = self._rotation
        dialogue = retry(rotation, self._greeting, self._on_event, first=pause)
        runner = DialogueRunner(self._connection, dialogue)
        self._asleep = False
        while True:
            look = None if self._outage is None else time.monotonic() + LOOK_SECONDS
            try:
                runner.resume(self._earlier(look, self._gives_up_at()))
                break
            except SuspendedError:
                if self._stopping:
                    runner.close()
                    raise
                self._raise_if_late()
        sock = self._connection.socket
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
            self._on_event(f"{rotation.last_error}; {rotation.next_attempt}")
        return pause

    def _greeting(self) -> Dialogue[None]:
        return greet(self._rotation, self.session, self._on_data)

    def _serve(self, sock: socket.socket) -> None:
        """One connection, until it is lost (`OSError`) or we are to stop."""
        session, guard, interrupt = self.session, self._guard, self._connection.interrupt
        events = select.poll()
        events.register(interrupt, select.POLLIN)
        events.register(sock, select.POLLIN)
        writing = False
        while not self._stopping:
            with guard:
                # Set under the guard: a thread that appends to the source afterwards sees it and wakes us.
                self._asleep = not session.has_more
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
            data = self.session.outgoing(SEND_BYTES)
        if data:
            try:
                count = sock.send(data)
            except BlockingIOError:
                return
            self.session.was_sent(count)

    def _receive(self, sock: socket.socket) -> None:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            raise EndedError("closed by the collator")
        self._on_data(data)

    def _on_data(self, data: bytes) -> None:
        acknowledged = False
        with self._guard:
            for acked in self.session.received(data):
                self._acknowledged(acked)
                acknowledged = True
            if acknowledged:
                self._waiting_since = None
                self._rotation.worked()
            self._guard.notify_all()
        self.session.source.tidy()

    # --- giving up

    def _gives_up_at(self) -> float | None:
        """When something will have been unacknowledged for too long."""
        if self._outage is None:
            return None
        with self._guard:
            source = self.session.source
            if not source.has_message(max(source.start, self.session.acked)):
                self._waiting_since = None
                return None
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            return self._waiting_since + self._outage

    def _raise_if_late(self) -> None:
        limit = self._gives_up_at()
        if limit is not None and time.monotonic() >= limit:
            last_error = self._rotation.last_error or f"{self._rotation.address} acknowledges nothing"
            raise GaveUpError(f"no acknowledgement for {self._outage} s ({last_error})")

    @staticmethod
    def _earlier(*limits: float | None) -> float | None:
        return min((limit for limit in limits if limit is not None), default=None)
