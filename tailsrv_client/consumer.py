"""Consumer: a stream's messages, in a `for` loop or an `async for` loop."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol, Self

from collator.framing import make_framing
from tailsrv.client import ByteClient, Position, Rotation, parse_addresses
from tailsrv.kit.errors import UsageError
from tailsrv_client.asking import answer
from tailsrv_client.checkpoint import Keeper
from tailsrv_client.consuming import Consuming
from tailsrv_client.messages import DEFAULT_MAX_MESSAGE_BYTES
from tailsrv_client.planning import make_plan, settle
from tailsrv_client.where import Byte, parse_start, parse_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable, Iterator
    from typing import TypeVar

    from tailsrv.client import Waits
    from tailsrv.kit.addresses import Address
    from tailsrv_client.messages import Message
    from tailsrv_client.planning import Plan, Question
    from tailsrv_client.queries import Entry

    Answer = TypeVar("Answer")

LOG = logging.getLogger("tailsrv_client")


class Connected(Protocol):
    """The end of a connection that either face holds."""

    def stop(self) -> None:
        """Let who waits for it go on."""

    def close(self) -> None:
        """Give it back."""


class Batches:
    """What `Consumer.batches` returns: lists of messages, with `for` or `async for`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __iter__(self) -> Iterator[list[Message]]:
        consumer = self._consumer
        while True:
            batch = list(consumer.core.left) if consumer.core is not None else []
            batch = batch or consumer.next_batch()
            if not batch:
                return
            consumer.hand_out_all(batch)
            yield batch
            consumer.took()

    def __aiter__(self) -> AsyncIterator[list[Message]]:
        from tailsrv_client.aio.reading import Batches as Asked  # noqa: PLC0415 - asyncio is imported by who uses it

        return Asked(self._consumer)


class Consumer:
    """The messages of the stream at one of `addresses` (``ADDR[,ADDR…]`` or a list), each once and in order.

    >>> with Consumer("fileserver:4321", start="end") as consumer:
    ...     for message in consumer:
    ...         print(message.offset, message.payload)

    `start`: "start", "end", a byte (-N: the last N bytes; they may begin within a message), a `Position`, or, asking
    the indexer at `index`, "message:N", "last:N", "time:T". `until` names the first message not wanted: None (for
    ever), "now", a byte, "message:N", "time:T"; or "count:N".

    `checkpoint`: a file that keeps the position of what the caller has taken, which is what it was handed before it
    asked for more. Where it exists it counts instead of `start`. It is written after `checkpoint_messages` messages
    (if given), and after `checkpoint_seconds` seconds (None: no), and by `close`; a crash hands out again what came
    after it was last written. One consumer at a time may have it.

    A lost connection is made again, at the next address, for ever: `tailsrv_client` logs a warning. Raises
    `StreamDiverged` where a stream is not the one that was read, `FramingError` for bytes that are no message,
    `UsageError`, `IndexFailed`, `CheckpointError`. Not to be used by two threads at once, but for `stop`.
    """

    def __init__(
        self,
        addresses: str | Iterable[str | Address],
        *,
        start: str | int | Position = "start",
        until: str | int | None = None,
        framing: str = "newline",
        index: str | Iterable[str | Address] | None = None,
        checkpoint: str | None = None,
        checkpoint_messages: int | None = None,
        checkpoint_seconds: float | None = 1.0,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        numbered: bool = False,
        waits: Waits | None = None,
    ) -> None:
        self.addresses = parse_addresses(addresses)
        self.rotation = Rotation(self.addresses)
        self.waits = waits
        self.core: Consuming | None = None
        self.index_addresses = None if index is None else parse_addresses(index)
        self._start = parse_start(start)
        self._until = parse_until(until)
        self._numbered = numbered
        self._framing = make_framing(framing, max_message_bytes)
        self._client: ByteClient | None = None
        self.feed: Connected | None = None
        self.stopped = False
        self._keeper = Keeper(checkpoint, checkpoint_messages, checkpoint_seconds) if checkpoint else None
        self._number: int | None = None
        if self._keeper is not None and self._keeper.saved is not None:
            self._start = Byte(self._keeper.saved.position)
            self._number = self._keeper.saved.number

    # --- what callers use

    def __iter__(self) -> Iterator[Message]:
        while True:
            core = self.core
            if core is not None:
                core.in_hand = 1
                for message in core.left:
                    core.handed = message.end
                    yield message
                    if self._keeper is None:
                        core.taken = message.end
                    else:
                        self.took()
            if not self.next_batch():
                return

    def __aiter__(self) -> AsyncIterator[Message]:
        from tailsrv_client.aio.reading import Messages  # noqa: PLC0415 - asyncio is imported by who uses it

        return Messages(self)

    def batches(self) -> Batches:
        """The same in lists of as many messages as there are at once: for speed. A list counts as taken as a whole."""
        return Batches(self)

    @property
    def position(self) -> Position:
        """Where to go on behind the last message handed out: good as `start` of another consumer.

        Before the first one: where reading begins, as far as that can be said without asking a server.
        """
        if self.core is not None:
            return self.core.position(self.core.handed)
        if not isinstance(self._start, Byte):
            raise UsageError("where that is, is known once the first message was asked for")
        return self._start.position

    @property
    def number(self) -> int | None:
        """The number of the next message; None where it isn't known (see `numbered`)."""
        return self.core.number if self.core is not None else self._number

    def save(self) -> None:
        """Write the checkpoint now: everything that was handed out is taken. Raises `OSError`."""
        if self.core is not None:
            self.core.taken = self.core.handed
        self._save()

    def stop(self) -> None:
        """End the loop of another thread, or of this one's next turn."""
        self.stopped = True
        for client in (self._client, self.feed):
            if client is not None:
                client.stop()

    def close(self) -> None:
        """Write the checkpoint, with all that was handed out, and stop."""
        self.save()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """An exception that leaves the block means that the message in hand was not handled: it isn't saved."""
        if kind is None:
            self.close()
        else:
            self._save()
            self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self.__exit__(kind)

    # --- what the faces share

    def planning(self) -> Generator[Question, int | Entry, Plan]:
        """The questions that come before the first byte."""
        return make_plan(self._start, self._number, self._until, now=time.time(), numbered=self._numbered)

    def planned(self, plan: Plan) -> Consuming:
        """Begin."""
        self.core = Consuming(plan, self._framing)
        return self.core

    def hand_out_all(self, batch: list[Message]) -> None:
        """The caller gets all of `batch` at once."""
        assert self.core is not None  # noqa: S101 - a batch comes from it
        self.core.left = iter(())
        self.core.handed = batch[-1].end
        self.core.in_hand = len(batch)

    def took(self) -> None:
        """The caller asks for more: it has taken what it was handed."""
        if self.core is None:
            return
        self.core.taken = self.core.handed
        if self._keeper is not None and self._keeper.took(self.core.in_hand):
            self._save()

    def before_waiting(self, core: Consuming) -> None:
        """To ask for more is to have taken what there was. Raises `FramingError` where no more can come."""
        if core.taken != core.handed:
            self.took()
        core.check()

    def wait_seconds(self) -> float | None:
        """How long a face may wait for bytes before it calls `on_timeout`."""
        waits = []
        left = self._keeper.seconds_left() if self._keeper is not None else None
        if left is not None:
            waits.append(max(0.001, left))
        if self.core is not None and self.core.until_time is not None:
            waits.append(max(0.001, self.core.until_time - time.time()))
        return min(waits, default=None)

    def on_timeout(self) -> Generator[Question, int | Entry, int] | None:
        """Save what is due. Returns what to ask when it is time to know the stop, for `Consuming.stop_at`."""
        if self._keeper is not None and self._keeper.seconds_left() == 0:
            self._save()
        until = self.core.until_time if self.core is not None else None
        return settle(until) if until is not None and until <= time.time() else None

    def tell(self, what: str) -> None:
        """What became of a connection. Raises nothing: it goes on."""
        LOG.warning("%s", what)

    # --- the blocking face

    def next_batch(self) -> list[Message]:
        """Wait for the next messages; none at the end."""
        core = self.begin()
        self.before_waiting(core)
        while data := self._read(core):
            batch = core.feed(data)
            if batch:
                return batch
            core.check()
        return []

    def chunks(self) -> Iterator[bytes]:
        """The stream's bytes as they come, instead of its messages; the checkpoint keeps the place between bytes."""
        core = self.begin()
        while data := self._read(core):
            yield data
            core.took_bytes()
            if self._keeper is not None and self._keeper.took(1):
                self._save()

    def begin(self) -> Consuming:
        """Find out what to read, if that has not happened yet."""
        return self.core or self.planned(self._answer(self.planning()))

    def _read(self, core: Consuming) -> bytes:
        if self._client is None:
            self._client = ByteClient(self.rotation, core.reader, tell=self.tell, waits=self.waits)
        while not (core.done or self.stopped):
            try:
                return self._client.read(self.wait_seconds())
            except TimeoutError:
                questions = self.on_timeout()
                if questions is not None:
                    core.stop_at(self._answer(questions))
        return b""

    def _answer(self, questions: Generator[Question, int | Entry, Answer]) -> Answer:
        return answer(questions, self.index_addresses, self.rotation, self.tell)

    # --- the checkpoint

    def _save(self) -> None:
        if self._keeper is not None and self.core is not None:
            self._keeper.save(self.core.saved())

    def _end(self) -> None:
        self.stopped = True
        for client in (self._client, self.feed):
            if client is not None:
                client.close()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
