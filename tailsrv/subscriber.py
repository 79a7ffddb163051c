"""One client, from its connection to the last byte that it is sent.

A broadcaster has ten thousand of these, so they are small. The state of a subscriber determines which module serves it:

| state           | served by                            | next      | when                                            |
| --------------- | ------------------------------------ | --------- | ----------------------------------------------- |
| AWAITING_HEADER | server.py, which reads the header    | BEHIND    | the header was read                             |
| BEHIND          | fanout.py, which sends bytes of the  | LIVE      | it has all available bytes, and no stop         |
|                 | file whenever the socket has room    | WAITING   | the file does not have its next byte            |
|                 |                                      | REPLAYING | it needs many bytes, or bytes that are on disk  |
| LIVE            | fanout.py, which sends every append  | BEHIND    | its socket is full, an append is large, the     |
|                 |                                      |           | file was truncated, or the daemon stops         |
| WAITING         | fanout.py, which sends nothing until | BEHIND    | the file has its next byte, or the daemon stops |
|                 | the file has its next byte           |           |                                                 |
| REPLAYING       | replay.py, on a replay thread        | BEHIND    | it is near the end or at its stop, needs        |
|                 |                                      |           | another thread, or has disconnected             |
| any of these    |                                      | ENDED     | it has all bytes up to its stop, was refused,   |
|                 |                                      |           | cut off, or has disconnected                    |
| ENDED           | lingering_close.py, until the client |           |                                                 |
|                 | has received everything              |           |                                                 |

`Subscriber.become` is the one place where the state changes.
"""

from __future__ import annotations

import functools
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tailsrv_formats.header import NEVER
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class State(StrEnum):
    """Which module serves a subscriber; see the table above. The log shows the values."""

    AWAITING_HEADER = "awaiting header"
    BEHIND = "behind"
    LIVE = "live"
    WAITING = "waiting"
    REPLAYING = "replaying"
    ENDED = "ended"


# As globals: they are compared by identity for every client that is not live, and an attribute costs a look-up more.
AWAITING_HEADER: Final = State.AWAITING_HEADER
BEHIND: Final = State.BEHIND
LIVE: Final = State.LIVE
WAITING: Final = State.WAITING
REPLAYING: Final = State.REPLAYING
ENDED: Final = State.ENDED

NEXT: Final[dict[State, frozenset[State]]] = {
    AWAITING_HEADER: frozenset({BEHIND, ENDED}),
    BEHIND: frozenset({LIVE, WAITING, REPLAYING, ENDED}),
    LIVE: frozenset({BEHIND, ENDED}),
    WAITING: frozenset({BEHIND, ENDED}),
    REPLAYING: frozenset({BEHIND, ENDED}),
    ENDED: frozenset(),
}
"""The table above."""


class Subscriber:
    """A connected client."""

    __slots__ = ("events", "fd", "handler", "offset", "peer", "send", "since", "sock", "state", "stop")

    def __init__(self, sock: socket.socket, peer: str, on_event: Callable[[Subscriber, int], None]) -> None:
        """``on_event(subscriber, mask)`` handles the socket's events in the main loop."""
        self.sock = sock
        self.fd = sock.fileno()
        self.handler: Callable[[int], None] = functools.partial(on_event, self)
        """The main loop's handler; it is registered again when a replay thread returns the subscriber."""
        self.send: Callable[[bytes], int] = sock.send
        """The socket's method, looked up once: it is called for every append."""
        self.peer = peer
        """The address of the client, for the log."""
        self.events = READ
        """The events that the main loop waits for, in addition to a hang-up."""
        self.since = time.monotonic()
        """When the client connected, in seconds of the monotonic clock."""
        self.state = AWAITING_HEADER
        self.offset = 0
        """The next byte to send. Out of date while the subscriber is LIVE: `Fanout.live_offset` is valid for all."""
        self.stop = NEVER
        """The byte before which the client's stream ends."""

    def become(self, state: State) -> None:
        """Change the state. Raises `RuntimeError` for a change that is not in the table: a defect of ours."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a subscriber that is {self.state} cannot become {state}")
        self.state = state
