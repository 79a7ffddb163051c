"""The common part of `Consumer` and `AsyncConsumer`: parameters, positions, checkpoints; everything but waiting."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tailsrv_client.checkpoint import CheckpointPolicy, FileCheckpointStore
from tailsrv_client.protocol.answers import answer
from tailsrv_client.protocol.bounds import Byte, parse_start, parse_until
from tailsrv_client.protocol.byte_stream import ByteStream
from tailsrv_client.protocol.consumption import Consumption
from tailsrv_client.protocol.dialogue import with_deadline
from tailsrv_client.protocol.lag import ask_lag
from tailsrv_client.protocol.messages import DEFAULT_MAX_MESSAGE_BYTES
from tailsrv_client.protocol.plan import find_time, make_plan
from tailsrv_client.protocol.ports import BROADCAST, INDEX
from tailsrv_client.protocol.requests import REQUEST_SECONDS, Exchange, times_of
from tailsrv_client.protocol.servers import Rotation, Servers, parse_addresses
from tailsrv_client.protocol.timeouts import Timeouts
from tailsrv_formats.errors import UsageError, reason
from tailsrv_formats.framing import make_framing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import TypeVar

    from tailsrv_client.checkpoint import CheckpointStore
    from tailsrv_client.errors import GaveUpError
    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_client.protocol.lag import Lag
    from tailsrv_client.protocol.messages import Message
    from tailsrv_client.protocol.plan import Plan, Question
    from tailsrv_client.protocol.requests import Entry
    from tailsrv_formats.addresses import Address
    from tailsrv_formats.checkpoint import Checkpoint
    from tailsrv_formats.position import Position

    Answer = TypeVar("Answer")

LOG = logging.getLogger("tailsrv_client")


class ConsumerBase:
    """See `tailsrv_client.Consumer` and `tailsrv_client.AsyncConsumer`."""

    def __init__(
        self,
        addresses: str | Iterable[str | Address],
        *,
        start: str | int | Position = "start",
        until: str | int | None = None,
        framing: str = "newline",
        index: str | Iterable[str | Address] | None = None,
        checkpoint: str | CheckpointStore | None = None,
        checkpoint_messages: int | None = None,
        checkpoint_seconds: float | None = 1.0,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        numbered: bool = False,
        timed: bool = False,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._rotation = Rotation(Servers(parse_addresses(addresses, BROADCAST), BROADCAST))
        self._index = None if index is None else Rotation(Servers(parse_addresses(index, INDEX), INDEX))
        self._timeouts = timeouts or Timeouts()
        self._start = parse_start(start)
        self._until = parse_until(until)
        self._numbered, self._timed = numbered, timed
        if timed and self._index is None:
            raise UsageError("timed=True needs an indexer: name it with index=ADDR")
        self._framing = make_framing(framing, max_message_bytes)
        self._consumption: Consumption | None = None
        self._stream: ByteStream | None = None
        self._untimed: list[Message] = []
        self._exchange = None if self._index is None else Exchange(self._index, REQUEST_SECONDS)
        self._stopped = False
        self._policy: CheckpointPolicy | None = None
        self._unsaved: OSError | None = None
        self._number: int | None = None
        if checkpoint is not None:
            store = FileCheckpointStore(checkpoint) if isinstance(checkpoint, str) else checkpoint
            self._policy = CheckpointPolicy(store, checkpoint_messages, checkpoint_seconds)
            if self._policy.saved is not None:
                self._start = Byte(self._policy.saved.position)
                self._number = self._policy.saved.number

    @property
    def position(self) -> Position:
        """Where to go on after the last message that was delivered: good as `start` of another consumer.

        Before the first one: where reading begins. Raises `UsageError` while that is not known: see `check`.
        """
        consumption = self._consumption
        if consumption is not None:
            return consumption.position(consumption.delivered)
        if not isinstance(self._start, Byte):
            raise UsageError("the position is not known before the first message or `check`")
        return self._start.position

    @property
    def number(self) -> int | None:
        """The number of the next message; None where it is not known (see `numbered`)."""
        return self._number if self._consumption is None else self._consumption.number

    @property
    def finished(self) -> bool:
        """Whether no further message will come: everything wanted was delivered, or the consumer was stopped."""
        return self._stopped or self.complete

    @property
    def complete(self) -> bool:
        """Whether everything wanted was delivered."""
        return self._consumption is not None and self._consumption.exhausted

    @property
    def remaining(self) -> int | None:
        """Bytes from the next message to the end that is wanted; None where that is not known, or not a byte."""
        consumption = self._consumption
        if consumption is None or consumption.reader.stop is None:
            return None
        return max(0, consumption.reader.stop - consumption.delivered)

    @property
    def unsaved(self) -> OSError | None:
        """Why the checkpoint is older than what was acked; None when it is not. Stays known after `close`."""
        return self._unsaved if self._policy is None else self._policy.error

    # --- dialogues, which the faces run

    def _plan_dialogue(self) -> Dialogue[Plan]:
        """Find out where to begin and where to end."""
        return self._answer_dialogue(
            make_plan(self._start, self._number, self._until, now=time.time(), numbered=self._numbered)
        )

    def _stop_dialogue(self) -> Dialogue[int]:
        """Find out which byte was the first after the time at which to end."""
        until = None if self._consumption is None else self._consumption.until_time
        return self._answer_dialogue(find_time(until or 0.0))

    def _times_dialogue(self, exchange: Exchange) -> Dialogue[list[Message]]:
        """Look up the times of the messages that wait for them. The connection is kept for the next ones."""
        return self._within_outage(times_of(exchange, self._untimed, self._warn))

    def _lag_dialogue(self) -> Dialogue[Lag]:
        """Ask for the lag of the last delivered message. May run in another thread."""
        consumption = self._consumption
        at = self.position.offset if consumption is None else consumption.delivered
        index = None if self._index is None else self._index.copy()
        return ask_lag(self._rotation.copy(), index, at)

    def _answer_dialogue(self, questions: Generator[Question, int | Entry, Answer]) -> Dialogue[Answer]:
        if self._exchange is not None:
            self._exchange.closed()  # these questions use the same channel, on new connections
        return self._within_outage(answer(questions, self._rotation, self._index, self._warn))

    def _within_outage(self, dialogue: Dialogue[Answer]) -> Dialogue[Answer]:
        """Give up when the servers have not answered for as long as an outage may last."""
        outage, clock = self._timeouts.outage, self._rotation.servers.clock
        return with_deadline(None if outage is None else clock() + outage, dialogue, clock, self._gave_up)

    def _gave_up(self) -> GaveUpError:
        return self._timeouts.gave_up(self._failed_rotation)

    def _too_late(self, timeout: float | None) -> TimeoutError:
        """The error of a `check` that takes too long."""
        last_error = self._failed_rotation.last_error or f"{self._failed_rotation.address}: no answer"
        return TimeoutError(f"no working connection within {timeout} s ({last_error})")

    @property
    def _failed_rotation(self) -> Rotation:
        """The servers to name in an error: the indexers if one failed, otherwise the broadcasters."""
        return self._index if self._index is not None and self._index.last_error else self._rotation

    def _warn(self, text: str) -> None:
        """Report a lost or failed connection; reading continues."""
        LOG.warning("%s", text)

    # --- what happens between two waits

    def _begin(self, plan: Plan) -> Consumption:
        """Read as planned."""
        self._consumption = Consumption(plan, self._framing, numbered=self._numbered or self._index is not None)
        self._stream = ByteStream(self._rotation, self._consumption.reader, self._timeouts, self._warn)
        return self._consumption

    def _ack(self) -> bool:
        """The caller asks for more: it has handled what it got. Returns whether the checkpoint is due."""
        consumption = self._consumption
        if consumption is None or consumption.acked == consumption.delivered:
            return self._is_due
        consumption.ack()
        return self._policy is not None and self._policy.acked(consumption.pending)

    def _ack_all(self) -> None:
        if self._consumption is not None:
            self._consumption.ack()

    @property
    def _is_stop_due(self) -> bool:
        """Whether the time at which to end has come, so that the stop can be found."""
        until = None if self._consumption is None else self._consumption.until_time
        return until is not None and until <= time.time()

    @property
    def _is_due(self) -> bool:
        """Whether it is time to write the checkpoint."""
        return self._policy is not None and self._policy.seconds_left() == 0

    def _seconds_left(self) -> float | None:
        """How long a face may wait before there is something else to do; None: for ever."""
        waits = []
        left = None if self._policy is None else self._policy.seconds_left()
        if left is not None:
            waits.append(max(0.001, left))
        if self._consumption is not None and self._consumption.until_time is not None:
            waits.append(max(0.001, self._consumption.until_time - time.time()))
        return min(waits, default=None)

    def _checkpoint(self) -> Checkpoint | None:
        """What to save; None: nothing."""
        return None if self._policy is None or self._consumption is None else self._consumption.checkpoint()

    def _try_to_save(self, checkpoint: Checkpoint | None) -> None:
        """Write the checkpoint; a failure is logged. May be called in another thread."""
        if self._policy is not None and checkpoint is not None:
            self._policy.try_to_save(checkpoint)

    def _save(self, checkpoint: Checkpoint | None) -> None:
        """Write the checkpoint. Raises `OSError`. May be called in another thread."""
        if self._policy is not None and checkpoint is not None:
            self._policy.save(checkpoint)

    def _release(self) -> None:
        """Let another consumer use the checkpoint."""
        policy, self._policy = self._policy, None
        if policy is None:
            return
        self._unsaved = policy.error
        if self._unsaved is not None:
            LOG.warning(
                "the last checkpoint was not written (%s): it is at %s", reason(self._unsaved), policy.describe_saved()
            )
        policy.close()
