"""One client, from its header to its last byte: what there is to know, in as few bytes as possible.

A broadcaster has ten thousand of these. Each is in one state, and belongs to the module that this state names:

| state     | owner                            | next      | when                                                    |
| --------- | -------------------------------- | --------- | ------------------------------------------------------- |
| ASKING    | server: the header has not come  | BEHIND    | the header was read                                     |
| BEHIND    | fanout: there are bytes for it   | LIVE      | it has everything, and no stop                          |
|           |                                  | WAITING   | the file has nothing for it yet, or was truncated       |
|           |                                  | REPLAYING | it needs much, or bytes that are on the disk            |
| LIVE      | fanout: it gets what is appended | BEHIND    | its socket is full, the end ran ahead, the daemon stops |
|           |                                  | WAITING   | the file was truncated                                  |
| WAITING   | fanout: ordered by offset        | BEHIND    | the file has reached it, or the daemon stops            |
| REPLAYING | replay: another thread has it    | BEHIND    | it is near the end, at its stop, or lost                |
| any       |                                  | GONE      | it has all it asked for, was lost or cut off            |
| GONE      | lingering_close, or nobody       |           |                                                         |

`Subscriber.become` is the one place where a state changes.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tailsrv_formats.header import NEVER
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class State(StrEnum):
    """Where a subscriber is; the values are what the log says."""

    ASKING = "asking"
    LIVE = "live"
    WAITING = "waiting"
    BEHIND = "behind"
    REPLAYING = "replaying"
    GONE = "gone"


# As globals: they are compared by identity for every client that is not live, and an attribute costs a look-up more.
ASKING: Final = State.ASKING
LIVE: Final = State.LIVE
WAITING: Final = State.WAITING
BEHIND: Final = State.BEHIND
REPLAYING: Final = State.REPLAYING
GONE: Final = State.GONE

NEXT: Final[dict[State, frozenset[State]]] = {
    ASKING: frozenset({BEHIND, GONE}),
    BEHIND: frozenset({LIVE, WAITING, REPLAYING, GONE}),
    LIVE: frozenset({BEHIND, GONE}),
    WAITING: frozenset({BEHIND, GONE}),
    REPLAYING: frozenset({BEHIND, GONE}),
    GONE: frozenset(),
}
"""The table above. LIVE becomes WAITING by way of BEHIND."""


class Subscriber:
    """A connected client."""

    __slots__ = ("events", "fd", "handler", "offset", "peer", "send", "since", "sock", "state", "stop")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.handler: Callable[[int], None]
        """What the reactor calls for it, kept for when it comes back from a replay thread."""
        self.send: Callable[[bytes], int] = sock.send
        """Looked up once: it is called for every client and append."""
        self.peer = peer
        self.events = READ
        """What the reactor waits for, besides its end."""
        self.since = time.monotonic()
        self.state = ASKING
        self.offset = 0
        """The next byte to send. For a live subscriber the fan-out knows it."""
        self.stop = NEVER
        """Where its stream ends."""

    def become(self, state: State) -> None:
        """Change the state. Raises `RuntimeError` for a change that is not in the table: a defect of ours."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a subscriber that is {self.state} cannot become {state}")
        self.state = state
