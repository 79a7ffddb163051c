"""Consumer on asyncio: the same `Reader`, `Rotation`, plan and core as on blocking sockets, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from tailsrv_client.aio.connection import AsyncLine, Errand, end, readable
from tailsrv_client.blocking.byte_client import CHUNK_BYTES
from tailsrv_client.errors import StreamDiverged
from tailsrv_client.protocol.dialogue import reach_broadcaster
from tailsrv_client.protocol.timeouts import Loss, Outage, Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import ParamSpec, Self, TypeVar

    from tailsrv_client.blocking.consumer import Consumer
    from tailsrv_client.protocol.consuming import Consuming
    from tailsrv_client.protocol.messages import Message
    from tailsrv_client.protocol.plan import Question
    from tailsrv_client.protocol.reader import Reader
    from tailsrv_client.protocol.requests import Entry
    from tailsrv_client.protocol.servers import Rotation

    Answer = TypeVar("Answer")
    Parameters = ParamSpec("Parameters")


async def in_thread(
    function: Callable[Parameters, object], *arguments: Parameters.args, **named: Parameters.kwargs
) -> None:
    """Call `function` in a thread: what it does may take the disk's time. It is over when this returns or raises."""
    doing = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})  # a file must not be written by two threads at once
        raise


class AsyncByteClient:
    """`tailsrv_client.ByteClient`, awaited."""

    def __init__(
        self, rotation: Rotation, reader: Reader, *, tell: Callable[[str], None], waits: Waits | None = None
    ) -> None:
        self.reader = reader
        self._rotation = rotation
        self._tell = tell
        self._waits = waits or Waits()
        self._loss = Loss(rotation, reader, tell)
        self._line = AsyncLine()
        self._connecting: Errand[None] | None = None
        self._socket: socket.socket | None = None
        self._check_by = 0.0
        self._pause = 0.0
        self._outage = Outage(self._waits.outage, time.monotonic())
        self._stopped = False

    async def read(self) -> bytes:
        """The next bytes; none at the reader's stop. May be cancelled and called again.

        Raises `StreamDiverged`, `WrongPortError`, `UnknownHostError`, `GaveUpError`.
        """
        while not (self.reader.done or self._stopped):
            if self._socket is None and not await self._connect():
                continue
            try:
                fresh = self.reader.received(await self._receive())
            except StreamDiverged:
                self._drop()
                self._pause = self._rotation.failed()
                raise
            if fresh:
                self._rotation.worked()
                self._outage.works()
                return fresh
        self._drop()
        return b""

    def stop(self) -> None:
        """Make a pending `read` return, and all further ones. In the loop's thread."""
        self._stopped = True
        if self._connecting is not None:
            self._connecting.stop()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # not connected any more: what was wanted
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        self._stopped = True
        self._drop()

    async def _connect(self) -> bool:
        if self._connecting is None:
            self._connecting = Errand(self._reach(self._pause))
            self._pause = 0.0
        errand, deadline = self._connecting, self._outage.deadline
        over = await errand.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._connecting is not errand:
            return False  # closed meanwhile
        if not over:
            self._drop()
            raise self._waits.gave_up(self._rotation)
        self._connecting = None
        errand.result()
        if self._stopped:
            return False
        self._socket = self._line.take()
        try:
            # At most 64 bytes into an empty buffer: whole, and at once.
            self._socket.send(self.reader.header())
        except OSError as error:
            self._lost(self._loss.failed(error))
            return False
        self._check_by = time.monotonic() + self._waits.check
        if not self.reader.owed:
            self._outage.works()
        return True

    async def _reach(self, pause: float) -> None:
        await asyncio.sleep(pause)
        await self._line.hold(reach_broadcaster(self._rotation, self._waits.connect, self._tell))

    async def _receive(self) -> bytes:
        assert self._socket is not None  # noqa: S101 - `_connect` made it
        check_by = self._check_by if self.reader.checking else None
        outage = None
        if self._waits.outage is not None and self.reader.owed:
            self._outage.begins(time.monotonic())
            outage = self._outage.deadline
        limit = min((one for one in (check_by, outage) if one is not None), default=None)
        try:
            async with asyncio.timeout(None if limit is None else limit - time.monotonic()):
                await readable(self._socket)
            data = self._socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except TimeoutError as error:
            if limit is None:  # the kernel's: the connection has died
                self._lost(self._loss.failed(error))
            elif check_by is not None and time.monotonic() >= check_by:
                self._lost(self._loss.shorter())
            if outage is not None and time.monotonic() >= outage:
                self._drop()
                raise self._waits.gave_up(self._rotation) from None
            return b""
        except OSError as error:
            if not self._stopped:
                self._lost(self._loss.failed(error))
            return b""
        if not data and not self._stopped:
            self._lost(self._loss.ended())
        return data

    def _lost(self, pause: float) -> None:
        self._drop()
        self._pause = pause
        self._outage.begins(time.monotonic())

    def _drop(self) -> None:
        if self._connecting is not None:
            self._connecting.stop()
            self._connecting = None
        self._line.drop()
        if self._socket is not None:
            end(self._socket)
            self._socket = None


class Batches:
    """`Consumer.batches()` for `async for`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._handed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Message]:
        consumer = self._consumer
        if self._handed:
            self._handed = False
            if consumer.took():
                await save(consumer)
        batch = list(consumer.core.left) if consumer.core is not None else []
        batch = batch or await feed_of(consumer).next_batch()
        if not batch:
            raise StopAsyncIteration
        consumer.hand_out_all(batch)
        self._handed = True
        return batch


class Messages:
    """`Consumer` for `async for`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._handed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        consumer = self._consumer
        if self._handed:
            self._handed = False
            if consumer.took():
                await save(consumer)
        while True:
            core = consumer.core
            if core is not None:
                core.in_hand = 1
                for message in core.left:
                    core.handed = message.end
                    self._handed = True
                    return message
            if not await feed_of(consumer).next_batch():
                raise StopAsyncIteration


async def save(consumer: Consumer) -> None:
    """Write the checkpoint, if that is possible, while the loop goes on."""
    if consumer.core is not None:
        await in_thread(consumer.save_if_possible, consumer.core.saved())


def feed_of(consumer: Consumer) -> Feed:
    """The one feed of a consumer."""
    if not isinstance(consumer.feed, Feed):
        consumer.feed = Feed(consumer)
    return consumer.feed


class Feed:
    """Where an `async for` gets its batches from."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._client: AsyncByteClient | None = None
        self._line = AsyncLine()
        self._answering: Errand[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def next_batch(self) -> list[Message]:
        """Wait for the next messages; none at the end."""
        consumer = self._consumer
        core = consumer.core
        if core is None:
            plan = await self._answer(consumer.planning())
            if plan is None:
                return []
            core = consumer.planned(plan)
        if consumer.took_before_waiting(core):
            await save(consumer)
        core.check()
        while data := await self._read(core):
            batch = core.feed(data)
            if batch:
                return batch
            core.check()
        return []

    def stop(self) -> None:
        """Let who waits go on, to find that nothing more comes. In any thread."""
        self._in_loop(self._stop)

    def close(self) -> None:
        """Give the connection back. What was fed stays with the consumer. In any thread."""
        self._in_loop(self._close)

    def _in_loop(self, call: Callable[[], None]) -> None:
        if threading.get_ident() != self._thread and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has just been closed: nobody waits
                self._loop.call_soon_threadsafe(call)
                return
        call()

    def _close(self) -> None:
        self._stop()
        if self._client is not None:
            self._client.close()

    def _stop(self) -> None:
        if self._answering is not None:
            self._answering.stop()
        if self._client is not None:
            self._client.stop()

    async def _read(self, core: Consuming) -> bytes:
        consumer = self._consumer
        if self._client is None:
            self._client = AsyncByteClient(consumer.rotation, core.reader, tell=consumer.tell, waits=consumer.waits)
        while not (core.done or consumer.stopped):
            try:
                async with asyncio.timeout(consumer.wait_seconds()):
                    return await self._client.read()
            except TimeoutError:
                if consumer.is_due:
                    await save(consumer)
                questions = consumer.on_timeout()
                if questions is not None:
                    stop = await self._answer(questions)
                    if stop is None:
                        break
                    core.stop_at(stop)
        return b""

    async def _answer(self, questions: Generator[Question, int | Entry, Answer]) -> Answer | None:
        """What the servers say; None when it was stopped before they did.

        Cancelled, it goes on by itself, and the next call has its result.
        """
        consumer = self._consumer
        if consumer.stopped:
            return None
        errand: Errand[Answer] = self._answering or Errand(self._line.hold(consumer.answer_talk(questions)))
        self._answering = errand
        over = await errand.wait(consumer.waits.outage)
        self._answering = None
        if not over:
            errand.stop()
            raise consumer.gave_up()
        self._line.drop()
        return errand.result()
