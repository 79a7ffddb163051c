"""The lag of a position: its distance to the end of the stream, as a dialogue. Pure except for the clock."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

import msgspec

from tailsrv_client.errors import IndexFailed
from tailsrv_client.protocol.requests import REQUEST_SECONDS, Exchange, decode, encode
from tailsrv_client.protocol.stream_end import end_of

if TYPE_CHECKING:
    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_client.protocol.servers import Rotation


class Lag(msgspec.Struct, frozen=True):
    """The distance from a position to the end of the stream."""

    bytes: int
    messages: int | None = None
    """None without an indexer."""
    seconds: float | None = None
    """Seconds since the first message after the position arrived; 0 without such a message, None without an indexer."""


def ask_lag(broadcast: Rotation, index: Rotation | None, at: int) -> Dialogue[Lag]:
    """The lag of byte `at`: in bytes from the broadcaster, or in messages and seconds, too, from the indexer.

    Asks once, the server that is to be tried. Raises `OSError`, `WrongPortError`, `IndexFailed`.
    """
    if index is None:
        return Lag(max(0, (yield from end_of(broadcast, at)) - at))
    exchange = Exchange(index, REQUEST_SECONDS)
    (line,) = yield from exchange.ask(encode({"count": True}), 1)
    newest = decode(line)
    if newest.partial:
        raise IndexFailed("the lag is unknown: the indexer has not indexed the whole stream; ask again later")
    if newest.end <= at:
        return Lag(0, 0, 0.0)
    (line,) = yield from exchange.ask(encode({"offset": at}), 1)
    first = decode(line)
    since = 0.0 if first.time is None else time.time() - dt.datetime.fromisoformat(first.time).timestamp()
    return Lag(newest.end - at, newest.count - first.number, max(0.0, since))
