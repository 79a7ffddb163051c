"""Which messages a consumer has delivered and acked. Pure.

A message is *delivered* when the caller gets it, and *acked* when the caller asks for more: it has handled what it
had. A checkpoint never runs ahead of what is acked.
"""

from __future__ import annotations

from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING

from tailsrv_client.protocol.messages import MessageDecoder
from tailsrv_client.protocol.reader import Reader
from tailsrv_formats.checkpoint import Checkpoint
from tailsrv_formats.errors import UsageError
from tailsrv_formats.position import Position, digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_client.protocol.messages import Message
    from tailsrv_client.protocol.plan import Plan
    from tailsrv_formats.framing import Framing


class Consumption:
    """One reading of a stream as planned: fed with bytes that are in order, it delivers messages.

    Iterating `undelivered` message by message is the fast path of a `for` loop; the loop then sets `delivered`,
    `acked` and `pending`. `collect` and `deliver` do it for lists.
    """

    def __init__(self, plan: Plan, framing: Framing, *, numbered: bool = False) -> None:
        """`numbered`: messages carry their numbers, where they are known; it costs some nanoseconds a message."""
        self.reader: Reader = Reader(plan.start, plan.stop)
        self.reader.known_end = plan.known_end
        self.undelivered: Iterator[Message] = iter(())
        self.delivered: int = plan.start.offset
        """The end of the last message delivered."""
        self.acked: int = plan.start.offset
        """The end of the last message acked."""
        self.pending: int = 1
        """Messages that were delivered last, at once."""
        self.until_time = plan.until_time
        self._start = plan.start
        self._number = plan.number
        self._numbered = numbered
        self._messages = 0
        self._collected = 0
        self._messages_left = plan.count
        self._framing = framing
        self._decoder: MessageDecoder | None = None
        self._by_bytes = False
        self._acked = Checkpoint(plan.start.offset, plan.start.digest, plan.number)

    @property
    def done(self) -> bool:
        """Whether everything wanted has been fed."""
        return self.reader.done or self._messages_left == 0

    @property
    def exhausted(self) -> bool:
        """Whether everything wanted has been delivered."""
        return self.done and length_hint(self.undelivered) + self._collected == 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes; they are `undelivered` now. Raises `FramingError`, `UsageError`."""
        if self._by_bytes:
            raise UsageError("chunks of bytes were read before: messages need a consumer of their own")
        if self._decoder is None:
            self._decoder = MessageDecoder(self._framing, self._start.offset, self.reader.before)
            self._acked = Checkpoint(self.acked, digest(self.reader.before), self._number)
        elif self._acked.offset != self.acked:
            # `feed` drops the bytes of older messages, so take the checkpoint of the acked ones while they are there.
            self._acked = self.checkpoint()
        first = self._number + self._messages if self._numbered and self._number is not None else None
        batch = self._decoder.feed(data, first)
        if self._messages_left is not None:
            batch = batch[: self._messages_left]
            self._messages_left -= len(batch)
        self._messages += len(batch)
        self.undelivered = iter(batch)
        return batch

    def check(self) -> None:
        """To be called before waiting for more. Raises `FramingError` where no more can come."""
        if self._decoder is not None and self._decoder.broken is not None:
            raise self._decoder.broken

    def collect(self, most: int | None) -> list[Message]:
        """Up to `most` messages to be delivered, without waiting; more of them may be added before `deliver`."""
        batch = list(islice(self.undelivered, most))
        self._collected += len(batch)
        return batch

    def put_back(self, batch: list[Message]) -> None:
        """Undo the `collect` of `batch`, which is not delivered after all."""
        self.undelivered = iter([*batch, *self.undelivered])
        self._collected -= len(batch)

    def withhold(self, batch: list[Message]) -> None:
        """`batch`, which was fed last, is not ready to be delivered: `release` follows."""
        self.undelivered = iter(())
        self._collected += len(batch)

    def release(self, batch: list[Message]) -> None:
        """Those that were withheld may be delivered, in this form."""
        self.undelivered = iter(batch)
        self._collected -= len(batch)

    def deliver(self, batch: list[Message]) -> None:
        """The caller gets `batch`, all that was taken, at once."""
        self._collected -= len(batch)
        self.pending = len(batch)
        if batch:
            self.delivered = batch[-1].end

    def deliver_bytes(self) -> None:
        """The caller reads bytes instead of messages and gets the last chunk. Raises `UsageError`."""
        if self._decoder is not None:
            raise UsageError("messages were read before: chunks of bytes need a consumer of their own")
        self._by_bytes = True
        self._number = None
        self.delivered = self.reader.offset

    def ack(self) -> None:
        """The caller has handled what was delivered; to be called before more is read."""
        if self._by_bytes:
            self._start = self.reader.position
        self.acked = self.delivered

    def stop_at(self, offset: int) -> None:
        """Read no further than `offset`, which the stream has reached, or than what was fed already."""
        self.until_time = None
        self.reader.stop = max(offset, self.reader.offset)
        self.reader.known_end = offset

    @property
    def number(self) -> int | None:
        """The number of the next message to be delivered, where the first one's is known."""
        if self._number is None:
            return None
        return self._number + self._messages - length_hint(self.undelivered) - self._collected

    def position(self, offset: int) -> Position:
        """The position at `delivered` or `acked`."""
        if self._decoder is None:
            return self.reader.position if offset == self.reader.offset else self._start
        return Position(offset, digest(self._decoder.tail(offset)))

    def checkpoint(self) -> Checkpoint:
        """What a checkpoint has to say now."""
        if self._acked.offset == self.acked and self._decoder is not None:
            return self._acked
        at = self.position(self.acked)
        number = self.number
        if number is not None and self.acked != self.delivered:
            number -= self.pending
        return Checkpoint(at.offset, at.digest, number)
