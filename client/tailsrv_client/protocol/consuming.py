"""What a consumer knows and decides, without a socket or a clock: the part that its two faces share.

Law: a message is handed out once, in order; a position says where to go on behind what was handed out, and a
checkpoint never runs ahead of what the caller has *taken*, which is what it was handed before it asked for more.
"""

from __future__ import annotations

from operator import length_hint
from typing import TYPE_CHECKING

from tailsrv_client.checkpoint import Saved
from tailsrv_client.protocol.messages import Inbox
from tailsrv_client.protocol.reader import Reader
from tailsrv_formats.position import Position, digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_client.protocol.messages import Message
    from tailsrv_client.protocol.plan import Plan
    from tailsrv_formats.framing import Framing


class Stopped(Exception):  # noqa: N818 - what happened; no caller of the library sees it
    """`Consumer.stop` was called while it was not yet known what to read."""


class Consuming:
    """One reading of a stream as planned: fed with bytes that are in order, hands out messages.

    The caller of the library is handed what `left` yields; who iterates it sets `handed`, `taken` and `in_hand`.
    """

    def __init__(self, plan: Plan, framing: Framing) -> None:
        self.reader = Reader(plan.start, plan.stop)
        self.reader.promised = plan.promised
        self.left: Iterator[Message] = iter(())
        """Fed but not yet handed out."""
        self.handed = plan.start.offset
        """The end of the last message handed out."""
        self.taken = plan.start.offset
        """The same, of the last one that the caller is through with."""
        self.in_hand = 1
        """How many messages are handed out at a time."""
        self.until_time = plan.until_time
        self._start = plan.start
        self._number = plan.number
        self._messages = 0
        self._wanted = plan.count
        self._framing = framing
        self._inbox: Inbox | None = None

    @property
    def done(self) -> bool:
        """Whether everything wanted has been fed."""
        return self.reader.done or self._wanted == 0

    def feed(self, data: bytes) -> list[Message]:
        """The next messages; they also become what is `left`. Raises `FramingError`."""
        if self._inbox is None:
            self._inbox = Inbox(self._framing, self._start.offset, self.reader.before)
        batch = self._inbox.feed(data)
        if self._wanted is not None:
            batch = batch[: self._wanted]
            self._wanted -= len(batch)
        self._messages += len(batch)
        self.left = iter(batch)
        return batch

    def check(self) -> None:
        """To be called before waiting for more. Raises `FramingError` where no more can come."""
        if self._inbox is not None and self._inbox.broken is not None:
            raise self._inbox.broken

    def took_bytes(self) -> None:
        """The caller reads bytes, not messages, and is through with all that it was handed."""
        self._start, self._number = self.reader.position, None
        self.handed = self.taken = self._start.offset

    def stop_at(self, offset: int) -> None:
        """Read no further than `offset`, which the stream has reached, or than what was fed already."""
        self.until_time = None
        self.reader.stop = max(offset, self.reader.offset)
        self.reader.promised = offset

    @property
    def number(self) -> int | None:
        """The number of the next message to be handed out, where the first one's is known."""
        return None if self._number is None else self._number + self._messages - length_hint(self.left)

    def position(self, offset: int) -> Position:
        """The position at `handed` or `taken`."""
        if self._inbox is None:
            return self.reader.position if offset == self.reader.offset else self._start
        return Position(offset, digest(self._inbox.tail(offset)))

    def saved(self) -> Saved:
        """What a checkpoint has to say now."""
        at = self.position(self.taken)
        number = self.number
        if number is not None and self.taken != self.handed:
            number -= self.in_hand
        return Saved(at.offset, at.digest, number)
