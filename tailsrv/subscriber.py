"""One client, from its header to its last byte: what there is to know, in as few bytes as possible.

A broadcaster has ten thousand of these. All that they do is done by whoever has them at the moment: the server while
the header is awaited, the fan-out, a replay lane, and at the end the closer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tailsrv_formats.header import NEVER
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# What a subscriber is at the moment. Plain strings: they are compared by identity, and read well in a log.
ASKING: Final = "asking"
"""Its header has not come yet."""
LIVE: Final = "live"
"""It has been sent everything, and is sent what comes with all the others."""
WAITING: Final = "waiting"
"""The file has nothing for it yet: it starts, or was cut off, beyond the end; or it stops at a certain byte."""
BEHIND: Final = "behind"
"""There is something for it, and its socket is full, or it is not its turn."""
AWAY: Final = "away"
"""In a replay lane, on another thread."""


class Subscriber:
    """A connected client."""

    __slots__ = ("events", "fd", "handler", "offset", "peer", "send", "since", "sock", "state", "stop")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.handler: Callable[[int], None]
        """What the reactor calls for it, kept for when it comes back from a lane."""
        self.send: Callable[[bytes], int] = sock.send
        """Looked up once: it is called for every client and append."""
        self.peer = peer
        self.events = READ
        """What the reactor waits for, besides its end."""
        self.since = time.monotonic()
        self.state = ASKING
        self.offset = 0
        """The next byte to send. Of a live subscriber it is the fan-out that knows."""
        self.stop = NEVER
        """Where its stream ends."""
