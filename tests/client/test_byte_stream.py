"""The dialogue that reads a stream's bytes, driven without sockets."""

from __future__ import annotations

import math

from tailsrv_client.protocol.byte_stream import ByteStream
from tailsrv_client.protocol.dialogue import Connect, Receive, Send
from tailsrv_client.protocol.reader import Reader
from tailsrv_client.protocol.servers import Rotation, Servers
from tailsrv_client.protocol.timeouts import Timeouts
from tailsrv_formats.addresses import Address
from tailsrv_formats.header import NEVER
from tailsrv_formats.position import Position, digest

KNOWN = bytes(range(64))


def test_an_outage_ends_when_an_idle_server_has_shown_the_bytes_that_are_known() -> None:
    """So a server that restarts twice within a day of silence is waited for each time."""
    now = 0.0
    rotation = Rotation(Servers([Address(host="h", port=1)], clock=lambda: now))
    rotation.set_verified()
    stream = ByteStream(rotation, Reader(Position(100, digest(KNOWN)), NEVER), Timeouts(outage=60), lambda _: None)
    dialogue = stream.read()
    for restart in range(3):
        now = 3600.0 * restart
        step = next(dialogue) if restart == 0 else dialogue.send(b"")  # the server has closed the connection
        while not isinstance(step, Connect):
            step = dialogue.send(b"")
        assert isinstance(dialogue.send(b""), Send)
        assert isinstance(dialogue.send(b""), Receive)
        idle = dialogue.send(KNOWN)
        assert isinstance(idle, Receive)
        assert idle.seconds == math.inf
