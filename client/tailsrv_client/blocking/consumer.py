"""Consumer: a stream's messages, in a `for` loop or an `async for` loop."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol, Self

from tailsrv_client.blocking.byte_client import ByteClient
from tailsrv_client.blocking.connection import Conversation, Line, SuspendedError
from tailsrv_client.checkpoint import Keeper
from tailsrv_client.protocol.answers import answer
from tailsrv_client.protocol.consuming import Consuming, Stopped
from tailsrv_client.protocol.messages import DEFAULT_MAX_MESSAGE_BYTES
from tailsrv_client.protocol.places import Byte, parse_start, parse_until
from tailsrv_client.protocol.plan import make_plan, settle
from tailsrv_client.protocol.ports import BROADCAST, INDEX
from tailsrv_client.protocol.servers import Rotation, Servers, parse_addresses
from tailsrv_client.protocol.timeouts import Waits
from tailsrv_formats.errors import UsageError, reason
from tailsrv_formats.framing import make_framing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable, Iterator
    from typing import TypeVar

    from tailsrv_client.checkpoint import Saved
    from tailsrv_client.errors import GaveUpError
    from tailsrv_client.protocol.dialogue import Talk
    from tailsrv_client.protocol.messages import Message
    from tailsrv_client.protocol.plan import Plan, Question
    from tailsrv_client.protocol.requests import Entry
    from tailsrv_formats.addresses import Address
    from tailsrv_formats.position import Position

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
            if consumer.took():
                consumer.save_if_possible()

    def __aiter__(self) -> AsyncIterator[list[Message]]:
        from tailsrv_client.aio.consumer import Batches as Asked  # noqa: PLC0415 - asyncio is imported by who uses it

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

    A host alone means port 4321 (`index`: 4324). A lost connection is made again, at the next address, for ever, and
    an indexer is asked until it answers: `tailsrv_client` logs a warning. A checkpoint that can't be written is logged
    and tried again; see `unsaved`. Raises `StreamDiverged` where a stream is not the one that was read, `FramingError`
    for bytes that are no message, `WrongPortError` where no broadcaster answers, `UnknownHostError`, `UsageError`,
    `IndexFailed`, `CheckpointError`, and `GaveUpError` after `waits.outage` seconds without a working connection. Not
    to be used by two threads at once, but for `stop`.
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
        self.rotation = Rotation(Servers(parse_addresses(addresses, BROADCAST), BROADCAST))
        self.waits = waits or Waits()
        self.core: Consuming | None = None
        self._index = None if index is None else Rotation(Servers(parse_addresses(index, INDEX), INDEX))
        self._line = Line()
        self._start = parse_start(start)
        self._until = parse_until(until)
        self._numbered = numbered
        self._framing = make_framing(framing, max_message_bytes)
        self._client: ByteClient | None = None
        self.feed: Connected | None = None
        self.stopped = False
        self._keeper = Keeper(checkpoint, checkpoint_messages, checkpoint_seconds) if checkpoint else None
        self._unsaved: OSError | None = None
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
                    elif self.took():
                        self.save_if_possible()
            if not self.next_batch():
                return

    def __aiter__(self) -> AsyncIterator[Message]:
        from tailsrv_client.aio.consumer import Messages  # noqa: PLC0415 - asyncio is imported by who uses it

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
        if self._keeper is not None and self.core is not None:
            self._take_all()
            self._keeper.save(self.core.saved())

    @property
    def unsaved(self) -> OSError | None:
        """Why the checkpoint does not say all that was taken; None when it does. Stays known after `close`."""
        return self._keeper.error if self._keeper is not None else self._unsaved

    def stop(self) -> None:
        """End the loop of another thread, or of this one's next turn: within a second, whatever it waits for."""
        self.stopped = True
        for waiting in (self._client, self.feed, self._line):
            if waiting is not None:
                waiting.stop()

    def close(self) -> None:
        """Write the checkpoint, with all that was handed out, and stop.

        A checkpoint that can't be written is logged and raises nothing, because the messages were handled: what came
        after its last write comes again at the next start. Whoever has to know calls `save` before, or asks `unsaved`.
        """
        self._take_all()
        self.save_if_possible()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """An exception that leaves the block means that the message in hand was not handled: it isn't saved."""
        if kind is None:
            self._take_all()
        self.save_if_possible()
        self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._take_all()
        try:
            if self._keeper is not None and self.core is not None:
                from tailsrv_client.aio.consumer import in_thread  # noqa: PLC0415 - as in `__aiter__`

                await in_thread(self.save_if_possible, self.core.saved())
        finally:
            self._end()

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

    def took(self) -> bool:
        """The caller asks for more: it has taken what it was handed. Returns whether the checkpoint is due."""
        if self.core is None:
            return False
        self.core.taken = self.core.handed
        return self._keeper is not None and self._keeper.took(self.core.in_hand)

    def took_before_waiting(self, core: Consuming) -> bool:
        """To ask for more is to have taken what there was. Returns whether the checkpoint is due."""
        return core.taken != core.handed and self.took()

    def wait_seconds(self) -> float | None:
        """How long a face may wait for bytes before it calls `on_timeout`."""
        waits = []
        left = self._keeper.seconds_left() if self._keeper is not None else None
        if left is not None:
            waits.append(max(0.001, left))
        if self.core is not None and self.core.until_time is not None:
            waits.append(max(0.001, self.core.until_time - time.time()))
        return min(waits, default=None)

    @property
    def is_due(self) -> bool:
        """Whether it is time to write the checkpoint."""
        return self._keeper is not None and self._keeper.seconds_left() == 0

    def save_if_possible(self, saved: Saved | None = None) -> None:
        """Write the checkpoint; a failure is logged. `saved`: what it has to say, for another thread."""
        if self._keeper is not None and self.core is not None:
            self._keeper.save_if_possible(saved or self.core.saved())

    def on_timeout(self) -> Generator[Question, int | Entry, int] | None:
        """What to ask when it is time to know the stop, for `Consuming.stop_at`."""
        until = self.core.until_time if self.core is not None else None
        return settle(until) if until is not None and until <= time.time() else None

    def tell(self, what: str) -> None:
        """What became of a connection. Raises nothing: it goes on."""
        LOG.warning("%s", what)

    def answer_talk(self, questions: Generator[Question, int | Entry, Answer]) -> Talk[Answer]:
        """The talk with the servers that answers `questions`."""
        return answer(questions, self.rotation, self._index, self.tell)

    def gave_up(self) -> GaveUpError:
        """The error for when no server has answered for `waits.outage`."""
        troubled = self._index if self._index is not None and self._index.trouble else self.rotation
        return self.waits.gave_up(troubled)

    # --- the blocking face

    def next_batch(self) -> list[Message]:
        """Wait for the next messages; none at the end."""
        try:
            core = self.begin()
        except Stopped:
            return []
        if self.took_before_waiting(core):
            self.save_if_possible()
        core.check()
        while data := self._read(core):
            batch = core.feed(data)
            if batch:
                return batch
            core.check()
        return []

    def chunks(self) -> Iterator[bytes]:
        """The stream's bytes as they come, instead of its messages; the checkpoint keeps the place between bytes."""
        try:
            core = self.begin()
        except Stopped:
            return
        while data := self._read(core):
            yield data
            core.took_bytes()
            if self._keeper is not None and self._keeper.took(1):
                self.save_if_possible()

    def begin(self) -> Consuming:
        """Find out what to read, if that has not happened yet. Raises `Stopped`."""
        return self.core or self.planned(self._answer(self.planning()))

    def _read(self, core: Consuming) -> bytes:
        if self._client is None:
            self._client = ByteClient(self.rotation, core.reader, tell=self.tell, waits=self.waits)
        while not (core.done or self.stopped):
            try:
                return self._client.read(self.wait_seconds())
            except TimeoutError:
                if self.is_due:
                    self.save_if_possible()
                questions = self.on_timeout()
                if questions is not None:
                    try:
                        core.stop_at(self._answer(questions))
                    except Stopped:
                        break
        return b""

    def _answer(self, questions: Generator[Question, int | Entry, Answer]) -> Answer:
        """Raises `Stopped`, `GaveUpError`, and what the servers' answers raise."""
        conversation = Conversation(self._line, self.answer_talk(questions))
        outage = self.waits.outage
        try:
            found = conversation.go_on(None if outage is None else time.monotonic() + outage)
        except SuspendedError:
            conversation.close()
            raise (Stopped if self.stopped else self.gave_up()) from None
        self._line.drop()
        return found

    # --- the end

    def _take_all(self) -> None:
        if self.core is not None:
            self.core.taken = self.core.handed

    def _end(self) -> None:
        self.stopped = True
        self._line.drop()
        for client in (self._client, self.feed):
            if client is not None:
                client.close()
        if self._keeper is not None:
            self._unsaved = self._keeper.error
            if self._unsaved is not None:
                at = "nothing" if self._keeper.saved is None else f"byte {self._keeper.saved.offset}"
                LOG.warning("the last checkpoint was not written (%s): it says %s", reason(self._unsaved), at)
            self._keeper.close()
            self._keeper = None
