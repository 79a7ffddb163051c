"""Consumer on asyncio: the same `Reader`, `Rotation`, plan and core as on blocking sockets, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING

from tailsrv.client import CHUNK_BYTES, StreamDiverged, Waits
from tailsrv_client.aio.connecting import connect, readable
from tailsrv_client.aio.index import AsyncIndex
from tailsrv_client.asking import request
from tailsrv_client.ending import PROBE_BYTES, search_end
from tailsrv_client.errors import IndexFailed
from tailsrv_client.planning import END

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Self, TypeVar

    from tailsrv.client import Reader, Rotation
    from tailsrv_client.consumer import Consumer
    from tailsrv_client.messages import Message
    from tailsrv_client.planning import Question
    from tailsrv_client.queries import Entry

    Answer = TypeVar("Answer")


class AsyncByteClient:
    """`tailsrv.client.ByteClient`, awaited."""

    def __init__(
        self, rotation: Rotation, reader: Reader, *, tell: Callable[[str], None], waits: Waits | None = None
    ) -> None:
        self.reader = reader
        self._rotation = rotation
        self._tell = tell
        self._waits = waits or Waits()
        self._socket: socket.socket | None = None
        self._check_by = 0.0
        self._pause = 0.0
        self._stopped = False

    async def read(self) -> bytes:
        """The next bytes; none at the reader's stop. May be cancelled and called again. Raises `StreamDiverged`."""
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
                return fresh
        self._drop()
        return b""

    def stop(self) -> None:
        """Make a pending `read` return, and all further ones."""
        self._stopped = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # not connected any more: what was wanted
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        self._stopped = True
        self._drop()

    async def _connect(self) -> bool:
        if self._pause:
            await asyncio.sleep(self._pause)
            self._pause = 0.0
        try:
            sock = await connect(self._rotation.address, self._waits.connect)
        except OSError as error:
            self._lost(f"cannot connect ({error.strerror or error})")
            return False
        self._socket = sock
        try:
            # At most 64 bytes into an empty buffer: whole, and at once.
            sock.send(self.reader.header())
        except OSError as error:
            self._lost(f"lost at byte {self.reader.offset} ({error.strerror or error})")
            return False
        self._check_by = time.monotonic() + self._waits.check
        return True

    async def _receive(self) -> bytes:
        assert self._socket is not None  # noqa: S101 - `_connect` made it
        try:
            async with asyncio.timeout(self._check_by - time.monotonic() if self.reader.checking else None):
                await readable(self._socket)
            data = self._socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except TimeoutError:
            self._lost(f"shorter than what was read: nothing at byte {self.reader.offset} yet")
            return b""
        except OSError as error:
            self._lost(f"lost at byte {self.reader.offset} ({error.strerror or error})")
            return b""
        if not data and not self._stopped:
            self._lost(f"ended by the server at byte {self.reader.offset}")
        return data

    def _lost(self, what: str) -> None:
        self._drop()
        address = self._rotation.address
        self._pause = self._rotation.failed()
        self._tell(f"{address}: {what}; next: {self._rotation.address}")

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
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
            consumer.took()
            self._handed = False
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
            consumer.took()
            self._handed = False
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

    async def next_batch(self) -> list[Message]:
        """Wait for the next messages; none at the end."""
        consumer = self._consumer
        core = consumer.core or consumer.planned(await self._answer(consumer.planning()))
        consumer.before_waiting(core)
        if self._client is None:
            self._client = AsyncByteClient(consumer.rotation, core.reader, tell=consumer.tell, waits=consumer.waits)
        while not (core.done or consumer.stopped):
            try:
                async with asyncio.timeout(consumer.wait_seconds()):
                    data = await self._client.read()
            except TimeoutError:
                questions = consumer.on_timeout()
                if questions is not None:
                    core.stop_at(await self._answer(questions))
                continue
            if not data:
                break
            batch = core.feed(data)
            if batch:
                return batch
            core.check()
        return []

    def stop(self) -> None:
        """Let who waits go on, to find that nothing more comes."""
        if self._client is not None:
            self._client.stop()

    def close(self) -> None:
        """Give the connection back. What was fed stays with the consumer."""
        if self._client is not None:
            self._client.close()

    async def _answer(self, questions: Generator[Question, int | Entry, Answer]) -> Answer:
        consumer = self._consumer
        async with AsyncIndex(consumer.index_addresses or consumer.addresses) as index:
            try:
                question = next(questions)
                while True:
                    try:
                        answer: int | Entry = (
                            await self._find_end()
                            if question == END
                            else await index.ask(request(question, consumer.index_addresses))
                        )
                    except IndexFailed as error:
                        question = questions.throw(error)
                    else:
                        question = questions.send(answer)
            except StopIteration as stop:
                found: Answer = stop.value
                return found

    async def _find_end(self) -> int:
        rotation = self._consumer.rotation
        while True:
            try:
                return await probe_end(rotation)
            except OSError as error:
                address = rotation.address
                pause = rotation.failed()
                what = f"cannot find the end ({error.strerror or error})"
                self._consumer.tell(f"{address}: {what}; next: {rotation.address}")
                await asyncio.sleep(pause)


async def probe_end(rotation: Rotation) -> int:
    """`tailsrv_client.ending.probe_end`, awaited."""
    loop = asyncio.get_running_loop()
    search = search_end()
    probe, most = next(search)
    while True:
        sock = await connect(rotation.address)
        with sock:
            sock.send(b"%d now\n" % probe)
            came = 0
            async with asyncio.timeout(10):
                while came < most and (chunk := await loop.sock_recv(sock, min(PROBE_BYTES, most - came))):
                    came += len(chunk)
        try:
            probe, most = search.send(came)
        except StopIteration as found:
            end: int = found.value
            return end
