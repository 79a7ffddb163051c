"""AsyncConsumer: the messages of a stream, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from tailsrv_client.aio.connection import AsyncChannel, StoppedError
from tailsrv_client.aio.threads import in_thread
from tailsrv_client.consumer_base import ConsumerBase
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tailsrv_client.protocol.consumption import Consumption
    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_client.protocol.lag import Lag
    from tailsrv_client.protocol.messages import Message

    Result = TypeVar("Result")

Item = TypeVar("Item")


class _ResumableIterator(Generic[Item]):
    """An iterator whose `anext` may be cancelled and called again: an async generator would have ended."""

    def __init__(self, fetch: Callable[[], Awaitable[Item | None]]) -> None:
        self._fetch = fetch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        item = await self._fetch()
        if item is None:
            raise StopAsyncIteration
        return item


class _Messages:
    """`AsyncConsumer` as an iterator. Of what one `anext` does, only the first message of a chunk awaits anything."""

    def __init__(self, consumer: AsyncConsumer) -> None:
        self._consumer = consumer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        consumer = self._consumer
        if consumer._ack():  # noqa: SLF001 - the same class in two parts
            await consumer._try_to_save_in_thread()  # noqa: SLF001
        while True:
            consumption = consumer._consumption  # noqa: SLF001
            if consumption is not None:
                consumption.pending = 1
                for message in consumption.undelivered:
                    consumption.delivered = message.end
                    return message
            if not await consumer._next():  # noqa: SLF001
                raise StopAsyncIteration


class AsyncConsumer(ConsumerBase):
    """`tailsrv_client.Consumer`, awaited: the same parameters, methods and errors.

    >>> async with AsyncConsumer("fileserver:4321", start="end") as consumer:
    ...     async for message in consumer:
    ...         print(message.offset, message.payload)

    Every wait may be cancelled without loss: the next call continues it. Checkpoints are written in a
    thread, so that a slow disk does not hold the event loop up. `stop` may be called in any thread.
    """

    _stream_channel: AsyncChannel | None = None
    _lookup_channel: AsyncChannel | None = None
    _lag_channel: AsyncChannel | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _thread = 0

    def __aiter__(self) -> AsyncIterator[Message]:
        return _Messages(self)

    async def poll(self, timeout: float | None = None) -> list[Message]:  # noqa: ASYNC109 - as `Consumer.poll`
        """See `Consumer.poll`."""
        return await self._collect(None, timeout) or []

    def batches(
        self, max_messages: int | None = None, max_seconds: float | None = None
    ) -> AsyncIterator[list[Message]]:
        """See `Consumer.batches`."""
        fill = max_seconds is not None
        return _ResumableIterator(lambda: self._collect(max_messages, max_seconds, fill=fill))

    def chunks(self) -> AsyncIterator[bytes]:
        """See `Consumer.chunks`."""
        return _ResumableIterator(self._next_chunk)

    async def check(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as `Consumer.check`
        """See `Consumer.check`."""
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                consumption = await self._ensure_plan()
                if self._stream is not None and not consumption.done:
                    await self._run_on_stream(self._stream.connect)
        except StoppedError:
            return
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._too_late(timeout) from None

    async def lag(self) -> Lag:
        """See `Consumer.lag`."""
        # On a connection of its own: a dialogue that was cancelled may wait on another one.
        channel = self._lag_channel = AsyncChannel()
        try:
            return await self._run(channel, self._lag_dialogue)
        except StoppedError:
            raise TailsrvError("the consumer was stopped") from None
        finally:
            channel.close()

    async def save(self) -> None:
        """See `Consumer.save`."""
        self._ack_all()
        await in_thread(self._save, self._checkpoint())

    def stop(self) -> None:
        """See `Consumer.stop`. May be called in any thread."""
        self._stopped = True
        loop = self._loop
        if loop is not None and threading.get_ident() != self._thread and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: no call waits
                loop.call_soon_threadsafe(self._stop_channels)
                return
        self._stop_channels()

    async def close(self) -> None:
        """See `Consumer.close`."""
        self._ack_all()
        await self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """An exception that leaves the block means that the last message was not handled: it is not acked."""
        if kind is None:
            self._ack_all()
        await self._end()

    async def _end(self) -> None:
        try:
            await self._try_to_save_in_thread()
        finally:
            self._stopped = True
            for channel in (self._stream_channel, self._lookup_channel, self._lag_channel):
                if channel is not None:
                    channel.close()
            self._release()

    def _stop_channels(self) -> None:
        for channel in (self._stream_channel, self._lookup_channel, self._lag_channel):
            if channel is not None:
                channel.stop()

    async def _try_to_save_in_thread(self) -> None:
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            await in_thread(self._try_to_save, checkpoint)

    # --- waiting

    async def _next_chunk(self) -> bytes | None:
        consumption = self._consumption
        if consumption is not None and consumption.acked != consumption.delivered:
            consumption.ack()
            if self._policy is not None and self._policy.acked(1):
                await self._try_to_save_in_thread()
        data = await self._next_bytes()
        if data and self._consumption is not None:
            self._consumption.deliver_bytes()
        return data or None

    async def _collect(self, most: int | None, seconds: float | None, *, fill: bool = False) -> list[Message] | None:
        """A list to deliver; None when there will be no more. `fill`: wait until it is full, or the time is over."""
        if self._ack():
            await self._try_to_save_in_thread()
        batch: list[Message] = []
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._fill(batch, most, fill=fill)
        except TailsrvError:
            if not batch:
                raise  # otherwise the next call raises it again
        except TimeoutError:
            if not limit.expired():
                raise
        except BaseException:  # mostly a cancellation: the next call delivers these messages
            if self._consumption is not None:
                self._consumption.put_back(batch)
            raise
        if self._consumption is not None:
            self._consumption.deliver(batch)
        return None if not batch and self.finished else batch

    async def _fill(self, batch: list[Message], most: int | None, *, fill: bool) -> None:
        while True:
            consumption = self._consumption
            if consumption is not None:
                batch += consumption.collect(None if most is None else most - len(batch))
                if len(batch) == most or (batch and not fill):
                    break
            if not await self._next():
                break

    async def _next(self) -> list[Message]:
        """Wait for messages, and make them `undelivered`; none at the end."""
        while True:
            if self._untimed:
                return await self._look_up_times()
            if self._consumption is not None:
                self._consumption.check()
            data = await self._next_bytes()
            consumption = self._consumption
            if not data or consumption is None:
                return []
            batch = consumption.feed(data)
            if batch and self._timed:
                self._untimed = batch
                consumption.withhold(batch)
            elif batch:
                return batch

    async def _look_up_times(self) -> list[Message]:
        exchange, consumption = self._exchange, self._consumption
        assert exchange is not None and consumption is not None  # noqa: S101, PT018 - the constructor sees to it
        try:
            batch = await self._run_lookup(lambda: self._times_dialogue(exchange), keep=True)
        except StoppedError:
            return []
        self._untimed = []
        consumption.release(batch)
        return batch

    async def _next_bytes(self) -> bytes:
        """Wait for bytes of the stream; none at the end."""
        try:
            consumption = await self._ensure_plan()
            if self._ack():
                await self._try_to_save_in_thread()
            while not consumption.done:
                assert self._stream is not None  # noqa: S101 - made with the consumption
                limit = asyncio.timeout(self._seconds_left())
                try:
                    async with limit:
                        return await self._run_on_stream(self._stream.read)
                except TimeoutError:
                    if not limit.expired():
                        raise
                if self._is_due:
                    await self._try_to_save_in_thread()
                if self._is_stop_due:
                    consumption.stop_at(await self._run_lookup(self._stop_dialogue))
        except StoppedError:
            pass
        return b""

    async def _ensure_plan(self) -> Consumption:
        return self._consumption or self._begin(await self._run_lookup(self._plan_dialogue))

    async def _run_on_stream(self, make: Callable[[], Dialogue[Result]]) -> Result:
        if self._stream_channel is None:
            self._stream_channel = AsyncChannel()
        try:
            return await self._run(self._stream_channel, make)
        except (asyncio.CancelledError, StoppedError):
            raise
        except BaseException:
            if self._stream is not None:
                self._stream.disconnected()
            raise

    async def _run_lookup(self, make: Callable[[], Dialogue[Result]], *, keep: bool = False) -> Result:
        """`keep`: leave the connection open for the next dialogue."""
        if self._lookup_channel is None:
            self._lookup_channel = AsyncChannel()
        found = await self._run(self._lookup_channel, make)
        if not keep:
            self._lookup_channel.disconnect()
        return found

    async def _run(self, channel: AsyncChannel, make: Callable[[], Dialogue[Result]]) -> Result:
        """Cancelled, the dialogue is continued by the next call. Raises `StoppedError`."""
        if self._loop is None:
            self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        # Checked after the loop is assigned: `stop` sets `_stopped` before it looks for the loop, so one of the two
        # sees the other.
        if self._stopped:
            raise StoppedError
        return await channel.run(make)
