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

from tailsrv_client.aio.connection import AsyncConnection, end
from tailsrv_client.errors import WrongPortError
from tailsrv_client.protocol.bounds import parse_time
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
        self._lookups = set[asyncio.Future[list[bytes]]]()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._unsure = 0.0
        """The pause before the next try of an unverified server that closes connections."""

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
        lookup = asyncio.ensure_future(self._ask(b"".join(map(encode, requests)), len(requests)))
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._lookups.add(lookup)
        try:
            return await lookup
        except asyncio.CancelledError:
            if self._stopped:
                raise TailsrvError("the look-up was stopped") from None
            raise
        finally:
            self._lookups.discard(lookup)

    def stop(self) -> None:
        """See `Index.stop`. May be called in any thread."""
        self._stopped = True
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self._cancel_all()
        else:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: no call waits
                loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for lookup in self._lookups:
            lookup.cancel()

    async def _ask(self, requests: bytes, count: int) -> list[bytes]:
        """Send, and receive as many lines; tries each address once more before it fails."""
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
        """Close the connection; look-ups that wait for a reply raise."""
        if self._connection is not None:
            self._connection.drop(ConnectionError("the connection to the indexer was given up"))
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connected(self) -> _Connection:
        """The connection. Look-ups that start while it is being made share it."""
        async with self._opening:
            connection = self._connection
            if connection is None or connection.ended:
                self._connection = None
                rotation, line = self._rotation, AsyncConnection()
                address, self._unsure = rotation.address, 0.0
                try:
                    await line.run(open_index(rotation, self._timeout))
                except (OSError, WrongPortError) as error:
                    pause = rotation.failed(error)
                    if address in rotation.servers.ended_since:
                        self._unsure = pause
                    raise
                except asyncio.CancelledError:
                    rotation.failed()
                    raise
                connection = self._connection = _Connection(line.detach())
        return connection

    def _lost(self, connection: _Connection, error: Exception, sent_at: float) -> None:
        """A request failed on `connection`: the first one that says so goes to the next address for all."""
        if not connection.ended and isinstance(error, TimeoutError):
            if connection.heard_at > sent_at:
                return  # this reply is late, but others come
            connection.drop(ConnectionError("the indexer does not answer"))
        if self._connection is connection:
            self._connection = None
            self._rotation.failed(error)


class _Connection:
    """A connection to an indexer, and the futures of its replies, in the order of the requests."""

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
                raise ConnectionError("the indexer closed the connection")
            replies: list[asyncio.Future[bytes]] = [loop.create_future() for _ in range(count)]
            self._waiting += replies
            try:
                await loop.sock_sendall(self._socket, requests)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    # A partial line on the connection would corrupt the next request.
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
                        raise ConnectionError("the indexer sent a reply without a request")
                    reply = self._waiting.popleft()
                    if not reply.done():
                        reply.set_result(line)
                if len(received) > LINE_BYTES:
                    raise ConnectionError("the indexer sends a line without an end")
            self.drop(ConnectionError("the indexer closed the connection before it answered"))
        except OSError as error:
            self.drop(error)

    def drop(self, error: OSError) -> None:
        """Close the connection; look-ups that wait for a reply raise `error`."""
        self.ended = True
        if self._listener is not asyncio.current_task():
            self._listener.cancel()
        if self._sending.locked():  # `ask` holds the lock while it sends: its send fails, and it closes the socket
            with contextlib.suppress(OSError):  # not connected any more
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            end(self._socket)
        while self._waiting:
            reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error)


def _abandon(replies: list[asyncio.Future[bytes]]) -> None:
    """Discard these replies: their caller has gone."""
    for reply in replies:
        if not reply.cancel() and not reply.cancelled():
            reply.exception()  # raised by another reply already; asyncio would log it as never retrieved
