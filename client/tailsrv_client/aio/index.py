"""Index on asyncio. Look-ups made at the same time are pipelined on one connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from tailsrv_client.aio.connection import AsyncLine, end
from tailsrv_client.errors import WrongPortError
from tailsrv_client.protocol.places import parse_time
from tailsrv_client.protocol.ports import INDEX
from tailsrv_client.protocol.requests import LINE_BYTES, PIPELINE, Entry, decode, encode, open_index
from tailsrv_client.protocol.servers import Rotation, Servers, parse_addresses
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tailsrv_formats.addresses import Address


class AsyncIndex:
    """`tailsrv_client.Index`, awaited: ``offset = await index.offset_of(1000)``."""

    def __init__(self, addresses: str | Iterable[str | Address], *, timeout: float = 10.0) -> None:
        self._rotation = Rotation(Servers(parse_addresses(addresses, INDEX), INDEX))
        self._timeout = timeout
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._asking = set[asyncio.Future[list[bytes]]]()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._unsure = 0.0
        """Seconds to wait before an unproven server is tried again that ends connections: soon we know what it is."""

    async def offset_of(self, number: int) -> int:
        """See `Index.offset_of`."""
        return (await self.ask({"number": number})).offset

    async def offsets_of(self, numbers: Iterable[int]) -> AsyncIterator[int]:
        """See `Index.offsets_of`."""
        async for entry in self.ask_all({"number": number} for number in numbers):
            yield entry.offset

    async def last(self, messages: int) -> int:
        """The byte at which the Nth message from the end starts, N being `messages`; 0 where there are fewer."""
        return (await self.ask({"last": messages})).offset

    async def at_time(self, time: str | float) -> Entry:
        """The first message that arrived at or after `time`: RFC 3339, or seconds since 1970."""
        return await self.ask({"time": parse_time(time) if isinstance(time, str) else time})

    async def message_holding(self, offset: int) -> Entry:
        """The message that byte `offset` belongs to."""
        return await self.ask({"offset": offset})

    async def entry(self, number: int) -> Entry:
        """See `Index.entry`."""
        return await self.ask({"number": number})

    async def count(self) -> int:
        """How many messages the stream has."""
        return (await self.ask({"count": True})).count

    async def ask(self, request: dict[str, Any]) -> Entry:
        """See `Index.ask`."""
        return decode((await self._ask_lines([request]))[0])

    async def ask_all(self, requests: Iterable[dict[str, Any]]) -> AsyncIterator[Entry]:
        """See `Index.ask_all`."""
        requests = iter(requests)
        while window := list(itertools.islice(requests, PIPELINE)):
            for line in await self._ask_lines(window):
                yield decode(line)

    async def _ask_lines(self, requests: list[dict[str, Any]]) -> list[bytes]:
        """The replies to some requests, which are sent at once. Ends with `stop`."""
        if self._stopped:
            raise TailsrvError("the look-up was stopped")
        asking = asyncio.ensure_future(self._ask(b"".join(map(encode, requests)), len(requests)))
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._asking.add(asking)
        try:
            return await asking
        except asyncio.CancelledError:
            if self._stopped:
                raise TailsrvError("the look-up was stopped") from None
            raise
        finally:
            self._asking.discard(asking)

    def stop(self) -> None:
        """See `Index.stop`. May be called in any thread."""
        self._stopped = True
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self._cancel_all()
        else:
            with contextlib.suppress(RuntimeError):  # it has just been closed: nobody waits
                loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for asking in self._asking:
            asking.cancel()

    async def _ask(self, requests: bytes, count: int) -> list[bytes]:
        """Send, and receive as many lines; once more at each address before it counts as a failure."""
        attempts = len(self._rotation.servers.addresses) + (self._connection is not None)
        ends = time.monotonic() + self._timeout
        while True:
            connection: _Connection | None = None
            pause, sent_at = 0.0, 0.0
            try:
                async with asyncio.timeout(self._timeout):
                    connection, sent_at = await self._connected(), time.monotonic()
                    lines = await connection.ask(requests, count)
            except (OSError, WrongPortError) as error:
                if connection is not None:
                    self._lost(connection, error, sent_at)
                elif time.monotonic() < ends:
                    pause = self._unsure
                attempts -= not pause
                if attempts <= 0:
                    raise
                await asyncio.sleep(pause)
            else:
                self._rotation.worked()
                return lines

    async def close(self) -> None:
        """Give the connection back; look-ups that wait for a reply raise."""
        if self._connection is not None:
            self._connection.drop(ConnectionError("the connection to the indexer was given up"))
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connected(self) -> _Connection:
        """The connection. Those who come while it is being made share it."""
        async with self._opening:
            connection = self._connection
            if connection is None or connection.ended:
                self._connection = None
                rotation, line = self._rotation, AsyncLine()
                address, self._unsure = rotation.address, 0.0
                try:
                    await line.hold(open_index(rotation, self._timeout))
                except (OSError, WrongPortError) as error:
                    pause = rotation.failed(error)
                    if address in rotation.servers.ended_since:
                        self._unsure = pause
                    raise
                except asyncio.CancelledError:
                    rotation.failed()
                    raise
                connection = self._connection = _Connection(line.take())
        return connection

    def _lost(self, connection: _Connection, error: Exception, sent_at: float) -> None:
        """A request failed on `connection`: the first one that says so goes to the next address for all."""
        if not connection.ended and isinstance(error, TimeoutError):
            if connection.heard_at > sent_at:
                return  # this reply is late, but others come
            connection.drop(ConnectionError("the indexer has fallen silent"))
        if self._connection is connection:
            self._connection = None
            self._rotation.failed(error)


class _Connection:
    """A connection to an indexer, and those who wait for its replies, in the order of their requests."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._sending = asyncio.Lock()
        self.ended = False
        self.heard_at = 0.0
        self._listener = asyncio.create_task(self._listen())

    async def ask(self, requests: bytes, count: int) -> list[bytes]:
        """The `count` lines that answer `requests`. May be cancelled: replies are then thrown away when they come."""
        loop = asyncio.get_running_loop()
        async with self._sending:
            if self.ended:
                raise ConnectionError("the indexer ended the connection")
            replies: list[asyncio.Future[bytes]] = [loop.create_future() for _ in range(count)]
            self._waiting += replies
            try:
                await loop.sock_sendall(self._socket, requests)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    # Half a line would spoil the requests of all others.
                    self.drop(ConnectionError("a request to the indexer was given up half-way"))
                _abandon(replies)
                raise
            finally:
                if self.ended:
                    end(self._socket)
        try:
            return [await reply for reply in replies]
        except BaseException:
            _abandon(replies)
            raise

    async def _listen(self) -> None:
        """Hand out the replies until the connection ends."""
        loop = asyncio.get_running_loop()
        received = b""
        try:
            while chunk := await loop.sock_recv(self._socket, LINE_BYTES):
                self.heard_at = time.monotonic()
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    if not self._waiting:
                        raise ConnectionError("the indexer said more than it was asked")
                    reply = self._waiting.popleft()
                    if not reply.done():
                        reply.set_result(line)
                if len(received) > LINE_BYTES:
                    raise ConnectionError("the indexer sends a line without an end")
            self.drop(ConnectionError("the indexer ended the connection before it had answered"))
        except OSError as error:
            self.drop(error)

    def drop(self, error: OSError) -> None:
        """End the connection; who waits for a reply gets `error`."""
        self.ended = True
        if self._listener is not asyncio.current_task():
            self._listener.cancel()
        if self._sending.locked():  # whoever is sending finds out, and closes it
            with contextlib.suppress(OSError):  # not connected any more
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            end(self._socket)
        while self._waiting:
            reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error)


def _abandon(replies: list[asyncio.Future[bytes]]) -> None:
    """Nobody waits for these any more."""
    for reply in replies:
        if not reply.cancel() and not reply.cancelled():
            reply.exception()  # said already: asyncio would complain that nobody has asked for it
