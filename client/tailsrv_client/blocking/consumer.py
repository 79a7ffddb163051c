"""Consumer: the messages of a stream, on blocking sockets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, TypeVar

from tailsrv_client.blocking.connection import Channel, SuspendedError
from tailsrv_client.consumer_base import ConsumerBase
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_client.protocol.consumption import Consumption
    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_client.protocol.lag import Lag
    from tailsrv_client.protocol.messages import Message

    Result = TypeVar("Result")


class _StoppedError(Exception):
    """`Consumer.stop` was called; no caller of the library sees this."""


class Consumer(ConsumerBase):
    """The messages of the stream at one of `addresses` (``ADDR[,ADDR…]`` or a list), each once and in order.

    >>> with Consumer("fileserver:4321", start="end") as consumer:
    ...     for message in consumer:
    ...         print(message.offset, message.payload)

    `start`: "start", "end", a byte (-N: the last N bytes; they may begin within a message), a `Position`, or, asking
    the indexer at `index`, "message:N", "last:N", "time:T". `until` names the first message not wanted: None (for
    ever), "now", a byte, "message:N", "time:T"; or "count:N". `numbered`: messages carry their number, for which
    the indexer is asked where it is not known; `timed`: look up the time of every message, too.

    `checkpoint`: a file, or a `CheckpointStore`, that keeps the position after the last message that was acked. A
    message is acked when the caller asks for more. A checkpoint that exists counts instead of `start`. It is written
    after `checkpoint_messages` messages (if given), after `checkpoint_seconds` seconds (None: no), and by `close`;
    after a crash the messages since then are delivered again.

    A host alone means port 4321 (`index`: 4324). A lost connection is made again, at the next address, for ever, and
    an indexer is asked until it answers: the logger `tailsrv_client` warns. A checkpoint that cannot be written is
    logged and tried again; see `unsaved`.

    Raises, all of them `TailsrvError`: `StreamDiverged` where a stream is not the one that was read, `FramingError`
    for bytes that are not a message, `WrongPortError` where no broadcaster answers, `UnknownHostError`, `UsageError`,
    `IndexFailed`, `CheckpointError`, and `GaveUpError` after ``timeouts.outage`` seconds without a working connection.
    Not to be used by two threads at once, but for `stop` and `lag`.
    """

    _stream_channel: Channel | None = None
    _lookup_channel: Channel | None = None
    _lag_channel: Channel | None = None

    def __iter__(self) -> Iterator[Message]:
        while True:
            consumption = self._consumption
            if consumption is not None:
                consumption.pending = 1
                for message in consumption.undelivered:
                    consumption.delivered = message.end
                    yield message
                    if self._policy is None:
                        consumption.acked = message.end
                    elif self._ack():
                        self._try_to_save(self._checkpoint())
            if not self._next(None):
                return

    def poll(self, timeout: float | None = None) -> list[Message]:
        """The messages that are there, at least one: up to 128 KiB, and what a longer message needs.

        Empty after `timeout` seconds without a message (None: no limit), and when the consumer is `finished`. Asking
        for more acks what was delivered before.
        """
        return self._collect(None, timeout) or []

    def batches(self, max_messages: int | None = None, max_seconds: float | None = None) -> Iterator[list[Message]]:
        """The messages in lists; a list is acked as a whole.

        A list has what is there at once, and at most `max_messages`. With `max_seconds` it is filled until it has
        `max_messages`, or that time has passed since it was asked for: it may be empty then, so that a program can
        do what is due while the stream is idle.
        """
        while (batch := self._collect(max_messages, max_seconds, fill=max_seconds is not None)) is not None:
            yield batch

    def chunks(self) -> Iterator[bytes]:
        """The stream's bytes as they come, in place of its messages; a checkpoint may be within a message then."""
        while data := self._next_bytes(None):
            assert self._consumption is not None  # noqa: S101 - the bytes come from it
            self._consumption.deliver_bytes()
            yield data
            self._consumption.ack()
            if self._policy is not None and self._policy.acked(1):
                self._try_to_save(self._checkpoint())

    def check(self, timeout: float | None = None) -> None:
        """Connect, and find out where reading begins and ends, so that errors are raised now.

        Raises `TimeoutError` when that takes longer than `timeout` seconds (None: no limit), and all that reading
        raises. `position` is known afterwards.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            consumption = self._ensure_plan(deadline)
            if self._stream is not None and not consumption.done:
                self._run_on_stream(self._stream.connect, deadline)
        except _StoppedError:
            return
        except SuspendedError:
            raise self._too_late(timeout) from None

    def lag(self) -> Lag:
        """The distance from the last delivered message to the end of the stream; asks the servers. Thread-safe.

        Raises `OSError` when they do not answer, `IndexFailed`, and `UsageError` while the position is not known.
        """
        # On a connection of its own: a dialogue that ran out of time may wait on another one.
        channel = self._lag_channel = Channel()
        try:
            return self._run(channel, self._lag_dialogue, None)
        except _StoppedError:
            raise TailsrvError("the consumer was stopped") from None
        finally:
            channel.close()

    def save(self) -> None:
        """Write the checkpoint now: everything that was delivered is acked. Raises `OSError`."""
        self._ack_all()
        self._save(self._checkpoint())

    def stop(self) -> None:
        """End the loop of another thread, or of this one's next turn: within a second, whatever it waits for."""
        self._stopped = True
        for channel in (self._stream_channel, self._lookup_channel, self._lag_channel):
            if channel is not None:
                channel.stop()

    def close(self) -> None:
        """Write the checkpoint, everything that was delivered being acked, and stop.

        A checkpoint that cannot be written is logged and raises nothing, because the messages were handled: those
        since its last write are delivered again at the next start. To learn of it call `save` before, or see
        `unsaved`.
        """
        self._ack_all()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """An exception that leaves the block means that the last message was not handled: it is not acked."""
        if kind is None:
            self._ack_all()
        self._end()

    def _end(self) -> None:
        try:
            self._try_to_save(self._checkpoint())
        finally:
            self._stopped = True
            for channel in (self._stream_channel, self._lookup_channel, self._lag_channel):
                if channel is not None:
                    channel.close()
            self._release()

    # --- waiting

    def _collect(self, most: int | None, seconds: float | None, *, fill: bool = False) -> list[Message] | None:
        """A list to deliver; None when there will be no more. `fill`: wait until it is full, or the time is over."""
        deadline = None if seconds is None else time.monotonic() + seconds
        if self._ack():
            self._try_to_save(self._checkpoint())
        batch: list[Message] = []
        try:
            self._fill(batch, most, deadline, fill=fill)
        except TailsrvError:
            if not batch:
                raise  # otherwise deliver the messages first: the next call raises the error again
        except BaseException:  # such as KeyboardInterrupt: a program may go on after it
            if self._consumption is not None:
                self._consumption.put_back(batch)
            raise
        if self._consumption is not None:
            self._consumption.deliver(batch)
        return None if not batch and self.finished else batch

    def _fill(self, batch: list[Message], most: int | None, deadline: float | None, *, fill: bool) -> None:
        while True:
            consumption = self._consumption
            if consumption is not None:
                batch += consumption.collect(None if most is None else most - len(batch))
                if len(batch) == most or (batch and not fill):
                    break
            if not self._next(deadline):
                break

    def _next(self, deadline: float | None) -> list[Message]:
        """Wait for messages, and make them `undelivered`; none at the end, or at `deadline`."""
        while True:
            if self._untimed:
                return self._look_up_times(deadline)
            consumption = self._consumption
            if consumption is not None:
                consumption.check()
            data = self._next_bytes(deadline)
            consumption = self._consumption
            if not data or consumption is None:
                return []
            batch = consumption.feed(data)
            if batch and self._timed:
                self._untimed = batch
                consumption.withhold(batch)
            elif batch:
                return batch

    def _look_up_times(self, deadline: float | None) -> list[Message]:
        exchange, consumption = self._exchange, self._consumption
        assert exchange is not None and consumption is not None  # noqa: S101, PT018 - the constructor sees to it
        try:
            batch = self._run_lookup(lambda: self._times_dialogue(exchange), deadline, keep=True)
        except (SuspendedError, _StoppedError):
            return []
        self._untimed = []
        consumption.release(batch)
        return batch

    def _next_bytes(self, deadline: float | None) -> bytes:
        """Wait for bytes of the stream; none at the end, or at `deadline`."""
        try:
            consumption = self._ensure_plan(deadline)
            if self._ack():
                self._try_to_save(self._checkpoint())
            while not consumption.done:
                left = self._seconds_left()
                soon = None if left is None else time.monotonic() + left
                assert self._stream is not None  # noqa: S101 - made with the consumption
                try:
                    return self._run_on_stream(self._stream.read, _earlier(deadline, soon))
                except SuspendedError:
                    if self._is_due:
                        self._try_to_save(self._checkpoint())
                    if self._is_stop_due:
                        consumption.stop_at(self._run_lookup(self._stop_dialogue, deadline))
                    if deadline is not None and time.monotonic() >= deadline:
                        raise
        except (_StoppedError, SuspendedError):
            pass
        return b""

    def _ensure_plan(self, deadline: float | None) -> Consumption:
        return self._consumption or self._begin(self._run_lookup(self._plan_dialogue, deadline))

    def _run_on_stream(self, make: Callable[[], Dialogue[Result]], deadline: float | None) -> Result:
        if self._stream_channel is None:
            self._stream_channel = Channel()
        try:
            return self._run(self._stream_channel, make, deadline)
        except SuspendedError:
            raise
        except BaseException:
            if self._stream is not None:
                self._stream.disconnected()
            raise

    def _run_lookup(
        self, make: Callable[[], Dialogue[Result]], deadline: float | None, *, keep: bool = False
    ) -> Result:
        """`keep`: leave the connection open for the next dialogue."""
        if self._lookup_channel is None:
            self._lookup_channel = Channel()
        found = self._run(self._lookup_channel, make, deadline)
        if not keep:
            self._lookup_channel.disconnect()
        return found

    def _run(self, channel: Channel, make: Callable[[], Dialogue[Result]], deadline: float | None) -> Result:
        """Raises `SuspendedError` at `deadline`: the next call continues the dialogue. Raises `_StoppedError`."""
        # Checked after the channel is assigned: `stop` sets `_stopped` before it looks for channels, so one of the two
        # sees the other.
        if self._stopped:
            raise _StoppedError
        try:
            return channel.run(make, deadline)
        except SuspendedError:
            if self._stopped:
                raise _StoppedError from None
            raise


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)
