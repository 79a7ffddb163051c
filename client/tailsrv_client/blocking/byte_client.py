"""A byte-level client of the broadcaster on a blocking socket: it reads on, through any number of connections."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from tailsrv_client.blocking.connection import Conversation, Line, SuspendedError
from tailsrv_client.errors import StreamDiverged
from tailsrv_client.protocol.dialogue import reach_broadcaster
from tailsrv_client.protocol.timeouts import Loss, Outage, Waits

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tailsrv_client.protocol.reader import Reader
    from tailsrv_client.protocol.servers import Rotation

CHUNK_BYTES: Final = 1 << 17
"""The most that one `read` returns: it stays in a processor's cache, and malloc has no need of the kernel."""


class ByteClient:
    """`reader` on blocking sockets: connects, and connects again, for as long as it takes.

    `tell` hears one sentence whenever a connection is lost or can't be had; it may raise to give up.
    """

    def __init__(
        self,
        rotation: Rotation,
        reader: Reader,
        *,
        tell: Callable[[str], None] = lambda _: None,
        waits: Waits | None = None,
        line: Line | None = None,
    ) -> None:
        self.reader = reader
        self._rotation = rotation
        self._tell = tell
        self._waits = waits or Waits()
        self._line = line or Line()
        self._loss = Loss(rotation, reader, tell)
        self._connecting: Conversation[None] | None = None
        self._connected = False
        self._check_by = 0.0
        self._retry_at = 0.0
        self._outage = Outage(self._waits.outage, time.monotonic())

    def read(self, timeout: float | None = None) -> bytes:
        """The next bytes, 1 to `CHUNK_BYTES`; none at the reader's stop or after `stop`.

        Raises `TimeoutError` after `timeout` seconds without any (call again to go on), `StreamDiverged`,
        `WrongPortError`, `UnknownHostError`, `GaveUpError`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        stopped = self._line.interrupt.is_set
        while not self.reader.done and not stopped():
            try:
                if not self._connected:
                    self._connect(self._limit(deadline))
                data = self._receive(deadline)
            except SuspendedError:
                if stopped():
                    break
                self._raise_if_late(deadline)
                continue
            try:
                fresh = self.reader.received(data)
            except StreamDiverged:
                self._drop()
                self._retry_at = time.monotonic() + self._rotation.failed()
                raise
            if fresh:
                self._rotation.worked()
                self._outage.works()
                return fresh
        self._drop()
        return b""

    def stop(self) -> None:
        """Make a `read` in another thread return, and all further ones."""
        self._line.stop()

    def close(self) -> None:
        """End; in the thread that reads."""
        self._line.interrupt.set()
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, deadline: float | None) -> None:
        """Connect, and send the header. Raises `SuspendedError` at `deadline`: then call again."""
        while time.monotonic() < self._retry_at:
            self._line.interrupt.wait(self._retry_at if deadline is None else min(deadline, self._retry_at))
            if deadline is not None and time.monotonic() >= deadline:
                raise SuspendedError
        if self._connecting is None:
            talk = reach_broadcaster(self._rotation, self._waits.connect, self._tell)
            self._connecting = Conversation(self._line, talk)
        try:
            self._connecting.go_on(deadline)
        except SuspendedError:
            raise
        except BaseException:
            self._connecting = None
            raise
        self._connecting = None
        self._connected = True
        sock = self._socket()
        sock.setblocking(True)
        try:
            # At most 64 bytes into an empty buffer: whole, and at once.
            sock.sendall(self.reader.header())
        except OSError as error:
            self._lost(self._loss.failed(error))
            raise SuspendedError from None
        self._check_by = time.monotonic() + self._waits.check
        if not self.reader.owed:
            self._outage.works()

    def _receive(self, deadline: float | None) -> bytes:
        """What comes next; nothing where the connection ended. Raises `SuspendedError` where nothing came in time."""
        sock = self._socket()
        check_by = self._check_by if self.reader.checking else None
        outage = None
        if self._waits.outage is not None and self.reader.owed:
            self._outage.begins(time.monotonic())
            outage = self._outage.deadline
        limits = [limit for limit in (deadline, check_by, outage) if limit is not None]
        try:
            sock.settimeout(max(1e-3, min(limits) - time.monotonic()) if limits else None)
            data = sock.recv(CHUNK_BYTES)
        except TimeoutError:
            if check_by is not None and time.monotonic() >= check_by:
                self._lost(self._loss.shorter())
            raise SuspendedError from None
        except OSError as error:
            self._lost(self._loss.failed(error))
            raise SuspendedError from None
        if not data:
            if not self._line.interrupt.is_set():
                self._lost(self._loss.ended())
            raise SuspendedError
        return data

    def _socket(self) -> socket.socket:
        sock = self._line.socket
        # Looked at after the connection is in its place: whoever stops us sets this before it looks for one.
        if sock is None or self._line.interrupt.is_set():
            raise SuspendedError
        return sock

    def _limit(self, deadline: float | None) -> float | None:
        limits = [limit for limit in (deadline, self._outage.deadline) if limit is not None]
        return min(limits, default=None)

    def _raise_if_late(self, deadline: float | None) -> None:
        now = time.monotonic()
        outage = self._outage.deadline
        if outage is not None and now >= outage and (not self._connected or self.reader.owed):
            raise self._waits.gave_up(self._rotation)
        if deadline is not None and now >= deadline:
            raise TimeoutError

    def _lost(self, pause: float) -> None:
        self._drop()
        now = time.monotonic()
        self._retry_at = now + pause
        self._outage.begins(now)

    def _drop(self) -> None:
        self._connected = False
        if self._connecting is not None:
            self._connecting.close()
            self._connecting = None
        self._line.drop()
