"""The indexer's protocol as its client sees it: requests out, entries in; and its dialogues. Pure.

Every request is sent in its JSON form, whose reply says all that is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tailsrv_client.errors import IndexFailed
from tailsrv_client.protocol.dialogue import RECEIVE_BYTES, Receive, Send, Sleep, connect, receive, rest_of_line, retry
from tailsrv_client.protocol.messages import Message
from tailsrv_client.protocol.ports import GREETING_SECONDS, PROBE, answered, wrong_port
from tailsrv_client.protocol.servers import SilentError

if TYPE_CHECKING:
    from tailsrv_client.protocol.dialogue import Dialogue, OnEvent
    from tailsrv_client.protocol.servers import Rotation

LINE_BYTES: Final = 1 << 16
"""Longer than any reply of an indexer: a longer line comes from another server."""

PIPELINE: Final = 512
"""Requests in flight: they and their replies fit into the buffers of any socket, so neither side blocks."""

REQUEST_SECONDS: Final = 10.0
"""The default time limit of a request."""

BEHIND_SECONDS: Final = 5.0
"""How long an indexer may know less of a stream than its broadcaster has sent."""

BEHIND_PAUSE_SECONDS: Final = 0.1

BUILDING_SECONDS: Final = 1.0
"""How long to wait before an index that is being built is asked again."""


class Entry(msgspec.Struct, frozen=True):
    """What the indexer knows about a message, and about the stream."""

    number: int
    """The first message is number 0."""
    offset: int
    """Where it starts, in bytes."""
    length: int | None = None
    """Its bytes, terminator or prefix included; None for the message that will come next."""
    time: str | None = None
    """When the indexer saw it, RFC 3339."""
    count: int = 0
    """Messages in the stream."""
    end: int = 0
    """Where the last of them ends, in bytes."""
    partial: bool = False
    """Whether `count` and `end` are only how far the indexer has come: it is still reading the stream."""


class _Failure(msgspec.Struct):
    error: str


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode
_decode_failure: Final = msgspec.json.Decoder(_Failure).decode


def encode(request: dict[str, Any]) -> bytes:
    """The line for ``{"number": N}``, ``{"last": N}``, ``{"offset": B}``, ``{"time": T}``, ``{"count": true}``."""
    return _encode(request) + b"\n"


def decode(line: bytes) -> Entry:
    """What a reply says. Raises `IndexFailed` with the indexer's words, or when it is no reply of an indexer."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # an error, or not a reply at all
    try:
        raise IndexFailed(_decode_failure(line).error)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        shown = ascii(line[:80].decode("latin-1"))
        raise IndexFailed(f"this is no reply of an indexer: {shown}; check the address") from None


def open_index(rotation: Rotation, seconds: float) -> Dialogue[None]:
    """Connect to an indexer. Verifies, once for each address, that it is one. Raises `WrongPortError`.

    The first line is one that the collator's raw port knows for a mistake, so that no request becomes a message.
    """
    yield from connect(rotation, seconds)
    if rotation.verified:
        return
    patience = min(GREETING_SECONDS, seconds)
    for request, reply in ((PROBE, b"error: "), (encode({"count": True}), b"{")):
        yield Send(request, patience)
        try:
            line = yield from receive(rotation, rotation.servers.clock() + patience)
        except SilentError:
            if patience < GREETING_SECONDS:
                raise TimeoutError(f"no reply within {seconds} s") from None  # too early to call it a wrong port
            raise
        line = yield from rest_of_line(line)
        what = answered(line)
        if not line.startswith(reply) or "acknowledged" in what.partition(", as")[2].partition(" or ")[0]:
            raise wrong_port(rotation.address, rotation.servers.port, what)
    rotation.set_verified()


class Exchange:
    """Requests and replies on one connection, which is kept from one to the next. `seconds`: for each request."""

    def __init__(self, rotation: Rotation, seconds: float) -> None:
        self.rotation: Rotation = rotation
        self._seconds = seconds
        self._received = b""
        self.open: bool = False

    def closed(self) -> None:
        """Forget the connection and its unread bytes."""
        self.open = False
        self._received = b""

    def ask(self, requests: bytes, replies: int) -> Dialogue[list[bytes]]:
        """The lines that answer `requests`. Raises `OSError`, `WrongPortError`; the caller then calls `closed`."""
        rotation = self.rotation
        if not self.open:
            yield from open_index(rotation, self._seconds)
            self.open = True
        yield Send(requests, self._seconds)
        have, ends = self._received.count(b"\n"), rotation.servers.clock() + self._seconds
        pieces, held = [self._received], len(self._received)
        while have < replies:
            chunk = yield Receive(max(0.0, ends - rotation.servers.clock()), RECEIVE_BYTES)
            if not chunk or held > LINE_BYTES:
                raise ConnectionError(
                    "closed by the indexer before it answered"
                    if not chunk
                    else f"a line of more than {LINE_BYTES} bytes"
                )
            pieces.append(chunk)
            lines = chunk.count(b"\n")
            if lines:
                have, held, ends = have + lines, 0, rotation.servers.clock() + self._seconds
            held += len(chunk)
        *answers, self._received = b"".join(pieces).split(b"\n", replies)
        return answers


def times_of(exchange: Exchange, batch: list[Message], on_event: OnEvent) -> Dialogue[list[Message]]:
    """`batch`, each message with the time at which the indexer saw it; asked for until the indexer answers.

    The connection of `exchange` is used while it works, and stays open.
    """
    rotation, timed = exchange.rotation, list[Message]()

    def attempt() -> Dialogue[list[bytes]]:
        try:
            return (yield from exchange.ask(b"".join(requests), len(requests)))
        except BaseException:
            exchange.closed()
            raise

    behind_since: float | None = None
    while len(timed) < len(batch):
        requests = [encode({"offset": message.offset}) for message in batch[len(timed) : len(timed) + PIPELINE]]
        lines = yield from retry(rotation, attempt, on_event)
        rotation.worked()
        for line in lines:
            try:
                entry = decode(line)
            except IndexFailed as error:
                # The broadcaster may be ahead of the indexer by the moment that this takes to see the file grow.
                now = rotation.servers.clock()
                behind_since = now if behind_since is None else behind_since
                if not error.passes and now >= behind_since + BEHIND_SECONDS:
                    raise
                exchange.closed()  # a pause ends the connection
                yield Sleep(BEHIND_PAUSE_SECONDS)
                break
            behind_since = None
            timed.append(msgspec.structs.replace(batch[len(timed)], time=entry.time))
    return timed


def ask_until_answered(
    rotation: Rotation, request: dict[str, Any], seconds: float, on_event: OnEvent
) -> Dialogue[Entry]:
    """The reply to one request. Retries while the indexer is unavailable or builds its index.

    Raises `IndexFailed` for what it refuses.
    """
    exchange = Exchange(rotation, seconds)

    def attempt() -> Dialogue[list[bytes]]:
        exchange.closed()
        return (yield from exchange.ask(encode(request), 1))

    said = ""
    while True:
        (line,) = yield from retry(rotation, attempt, on_event)
        rotation.worked()
        try:
            return decode(line)
        except IndexFailed as error:
            if not error.passes:
                raise
            if not said:
                said = str(error)
                on_event(f"{rotation.address}: {said}")
        yield Sleep(BUILDING_SECONDS)
