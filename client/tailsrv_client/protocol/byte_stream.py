"""The bytes of a stream, through any number of connections, as dialogues. Pure.

`ByteStream.read` connects where there is no connection, asks for the bytes from the reader's place on, and returns
what arrives. A connection that is lost, or that shows less of the stream than is known to exist, is replaced by one to
the next address.

| state        | event                                        | next         | what happens                         |
| ------------ | -------------------------------------------- | ------------ | ------------------------------------ |
| DISCONNECTED | the pause is over                            | DISCONNECTED | prove the server, connect            |
| DISCONNECTED | connected                                    | CHECKING     | send the header                      |
| DISCONNECTED | no connection for `outage` seconds           | DISCONNECTED | `GaveUpError`                        |
| CHECKING     | the bytes before the place are the known ones | READING      |                                      |
| CHECKING     | they are other ones                          | DISCONNECTED | `StreamDiverged`                     |
| CHECKING     | they do not arrive within `check` seconds    | DISCONNECTED | the server is behind: next address   |
| any          | lost, or ended by the server                 | DISCONNECTED | next address, after a pause          |
| any          | promised bytes do not arrive for `outage` s  | DISCONNECTED | `GaveUpError`                        |

CHECKING and READING are the reader's (`Reader.checking`); what is here is whether there is a connection.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tailsrv_client.errors import StreamDiverged
from tailsrv_client.protocol.dialogue import Receive, Send, connect_broadcaster, with_deadline
from tailsrv_client.protocol.timeouts import Outage, Reconnection

if TYPE_CHECKING:
    from tailsrv_client.protocol.dialogue import Dialogue, OnEvent
    from tailsrv_client.protocol.reader import Reader
    from tailsrv_client.protocol.servers import Rotation
    from tailsrv_client.protocol.timeouts import Timeouts

CHUNK_BYTES: Final = 1 << 17
"""The most that one `read` returns: it stays in a processor's cache, and malloc has no need of the kernel."""


class ByteStream:
    """The stream at the addresses of `rotation`, from the place of `reader` on.

    `on_event` receives one sentence whenever a connection is lost or cannot be made.
    """

    def __init__(self, rotation: Rotation, reader: Reader, timeouts: Timeouts, on_event: OnEvent) -> None:
        self.reader = reader
        self._rotation = rotation
        self._timeouts = timeouts
        self._on_event = on_event
        self._clock = rotation.servers.clock
        self._reconnection = Reconnection(rotation, reader, on_event)
        self._outage = Outage(timeouts.outage, self._clock())
        self._connected = False
        self._check_by = 0.0
        self._pause = 0.0

    def connect(self) -> Dialogue[None]:
        """Connect, if there is no connection. Raises as `read` does, but for `StreamDiverged`."""
        while not self._connected:
            pause, self._pause = self._pause, 0.0
            connecting = connect_broadcaster(self._rotation, self._timeouts.connect, self._on_event, first=pause)
            yield from with_deadline(self._outage.deadline, connecting, self._clock, self._gave_up)
            try:
                yield Send(self.reader.header())
            except OSError as error:
                self._lost(self._reconnection.failed(error))
                continue
            self._connected = True
            self._check_by = self._clock() + self._timeouts.check
            if not self.reader.expects_bytes:
                self._outage.end()

    def read(self) -> Dialogue[bytes]:
        """The next bytes, 1 to `CHUNK_BYTES`; none at the reader's stop.

        Raises `StreamDiverged`, `WrongPortError`, `UnknownHostError`, `GaveUpError`; after each of them `read` may be
        called again.
        """
        reader = self.reader
        while not reader.done:
            if not self._connected:
                yield from self.connect()
            try:
                data = yield Receive(self._patience(), CHUNK_BYTES)
            except OSError as error:
                self._failed(error)
                continue
            if not data:
                self._lost(self._reconnection.ended())
                continue
            try:
                new = reader.received(data)
            except StreamDiverged:
                self._lost(self._rotation.failed())
                raise
            if new or not reader.expects_bytes:  # an idle server works, too: it has shown all bytes that we know
                self._rotation.worked()
                self._outage.end()
            if new:
                return new
        return b""

    def disconnected(self) -> None:
        """The caller has closed the connection: the next `read` connects again."""
        self._connected = False

    def _patience(self) -> float:
        """How long the server may take to send something, in seconds."""
        if not self.reader.expects_bytes:
            return math.inf  # an idle stream may be silent for ever
        limit = self._check_by if self.reader.checking else math.inf
        if self._timeouts.outage is not None:
            self._outage.begin(self._clock())
            limit = min(limit, self._outage.deadline or math.inf)
        return limit if limit == math.inf else max(0.0, limit - self._clock())

    def _failed(self, error: OSError) -> None:
        """Nothing came in time, or the connection broke: the kernel, too, reports a dead peer as a time-out."""
        now = self._clock()
        deadline = self._outage.deadline
        if self.reader.expects_bytes and deadline is not None and now >= deadline:
            self._lost(0.0)
            raise self._gave_up() from None
        if isinstance(error, TimeoutError) and self.reader.checking and now >= self._check_by:
            self._lost(self._reconnection.shorter())
        else:
            self._lost(self._reconnection.failed(error))

    def _lost(self, pause: float) -> None:
        self._connected = False
        self._pause = pause
        self._outage.begin(self._clock())

    def _gave_up(self) -> Exception:
        return self._timeouts.gave_up(self._rotation)
