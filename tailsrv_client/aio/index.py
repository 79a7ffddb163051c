"""Index on asyncio. Look-ups made at the same time are pipelined on one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from tailsrv.client import Rotation, parse_addresses
from tailsrv_client.aio.connecting import connect
from tailsrv_client.queries import LINE_BYTES, Entry, decode, encode
from tailsrv_client.where import parse_time

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from tailsrv.kit.addresses import Address


class AsyncIndex:
    """`tailsrv_client.Index`, awaited: ``offset = await index.offset_of(1000)``."""

    def __init__(self, addresses: str | Iterable[str | Address], *, timeout: float = 10.0) -> None:
        self._addresses = parse_addresses(addresses)
        self._rotation = Rotation(self._addresses)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._listener: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    async def offset_of(self, number: int) -> int:
        """The byte at which message `number` starts."""
        return (await self.ask({"number": number})).offset

    async def last(self, messages: int) -> int:
        """The byte at which the so manieth message from the end starts; 0 where there are fewer."""
        return (await self.ask({"last": messages})).offset

    async def at_time(self, time: str | float) -> Entry:
        """The first message that arrived at or after `time`: RFC 3339, or seconds since 1970."""
        return await self.ask({"time": parse_time(time) if isinstance(time, str) else time})

    async def message_holding(self, offset: int) -> Entry:
        """The message that byte `offset` belongs to."""
        return await self.ask({"offset": offset})

    async def count(self) -> int:
        """How many messages the stream has."""
        return (await self.ask({"count": True})).count

    async def ask(self, request: dict[str, Any]) -> Entry:
        """The reply to one request. Raises `IndexFailed`, and `OSError` when none of the addresses answers."""
        attempts = len(self._addresses) + (self._socket is not None)
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    line = await self._exchange(encode(request))
            except OSError:
                self._drop(None)
                attempts -= 1
                if not attempts:
                    raise
                self._rotation.failed()
            else:
                self._rotation.worked()
                return decode(line)

    async def close(self) -> None:
        """Give the connection back."""
        self._drop(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _exchange(self, line: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._sending:  # replies come in the order of the requests
            if self._socket is None:
                self._socket = await connect(self._rotation.address, self._timeout)
                self._listener = asyncio.create_task(self._listen(self._socket))
            reply: asyncio.Future[bytes] = loop.create_future()
            self._waiting.append(reply)
            await loop.sock_sendall(self._socket, line)
        return await reply

    async def _listen(self, sock: socket.socket) -> None:
        """Hand out the replies until the connection ends."""
        loop = asyncio.get_running_loop()
        received = b""
        try:
            while chunk := await loop.sock_recv(sock, LINE_BYTES):
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    reply = self._waiting.popleft()
                    if not reply.done():
                        reply.set_result(line)
            self._drop(ConnectionError("the indexer ended the connection before it had answered"))
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError | None) -> None:
        """End the connection; who waits for a reply is told."""
        if self._listener is not None and self._listener is not asyncio.current_task():
            self._listener.cancel()
        self._listener = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        while self._waiting:
            reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error or ConnectionError("the connection to the indexer was given up"))
