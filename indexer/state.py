"""The states of a follower, and which may come after which.

| state       | meaning                                                                                 |
| ----------- | --------------------------------------------------------------------------------------- |
| WAITING     | FILE is not open: it does not exist, or has to be opened again                          |
| UNVERIFIED  | the index may belong to another stream; it is compared as soon as FILE can be read      |
| CATCHING_UP | the loop reads what FILE held when it was opened, or when the index was begun           |
| BUILDING    | builder processes read it                                                               |
| LIVE        | all of that was read; messages are read when they are committed, with the time of that  |
| CORRUPT     | as LIVE, but the next bytes cannot be a message, and nothing more is read               |
| UNREADABLE  | reading failed; it is tried again every second                                          |

| state       | next        | when                                                                      |
| ----------- | ----------- | ------------------------------------------------------------------------- |
| WAITING     | UNVERIFIED  | FILE was opened                                                           |
| UNVERIFIED  | CATCHING_UP | the index was compared with the stream; what does not belong to it is cut |
| CATCHING_UP | LIVE        | everything was read                                                       |
|             | CORRUPT     | everything before invalid framing was read                                |
|             | BUILDING    | much is unread                                                            |
| BUILDING    | CATCHING_UP | the processes ended, or FILE became shorter                               |
| LIVE        | CORRUPT     | the next bytes cannot be a message                                        |
|             | BUILDING    | much is unread                                                            |
|             | CATCHING_UP | FILE was rewritten: a new index was begun                                 |
| CORRUPT     | LIVE        | FILE became shorter                                                       |
|             | CATCHING_UP | FILE was rewritten: a new index was begun                                 |
| UNREADABLE  | CATCHING_UP | a second has passed                                                       |
| READING     | UNREADABLE  | reading FILE or the index failed                                          |
| VERIFIED    | UNVERIFIED  | FILE became shorter than the index, or the index was cut at a wrong entry |
| OPEN        | WAITING     | FILE is opened again, or another file has its name                        |

READING is CATCHING_UP, BUILDING, LIVE and CORRUPT; VERIFIED is these and UNREADABLE; OPEN is these and UNVERIFIED.
Queries are answered in VERIFIED, as far as the stream is indexed. Repairing wrong entries is not a state: it is one
call of bounded time, made for the query that met them.

`Follower` changes its state in one place, `_become`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a follower is."""

    WAITING = "waiting"
    UNVERIFIED = "unverified"
    CATCHING_UP = "catching up"
    BUILDING = "building"
    LIVE = "live"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


_FAILED: Final = frozenset({State.UNREADABLE, State.UNVERIFIED, State.WAITING})

NEXT: Final[dict[State, frozenset[State]]] = {
    State.WAITING: frozenset({State.UNVERIFIED}),
    State.UNVERIFIED: frozenset({State.CATCHING_UP, State.WAITING}),
    State.CATCHING_UP: frozenset({State.LIVE, State.CORRUPT, State.BUILDING}) | _FAILED,
    State.BUILDING: frozenset({State.CATCHING_UP}) | _FAILED,
    State.LIVE: frozenset({State.CORRUPT, State.BUILDING, State.CATCHING_UP}) | _FAILED,
    State.CORRUPT: frozenset({State.LIVE, State.CATCHING_UP}) | _FAILED,
    State.UNREADABLE: frozenset({State.CATCHING_UP, State.UNVERIFIED, State.WAITING}),
}
"""The second table: what may come after a state."""

SETTLED: Final = frozenset({State.LIVE, State.CORRUPT})
"""Everything that FILE held was read: what comes now is seen to arrive."""
