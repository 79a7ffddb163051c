"""The broadcaster on asyncio, as asyncio wants it: a protocol for each client, and a transport that is written to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from bench.loops import common

if TYPE_CHECKING:
    import socket


class Client(asyncio.Protocol):
    """A connection, and the next byte that it is due."""

    def __init__(self, stream: common.Stream, caught_up: set[Client]) -> None:
        self.stream = stream
        self.caught_up = caught_up
        self.at = -1
        self.full = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=0)  # pause as soon as the socket is full: no memory grows

    def data_received(self, data: bytes) -> None:
        """Take the header; what follows it is ignored."""
        if self.at >= 0:
            return
        try:
            self.at = self.stream.start(data)
        except ValueError:
            self.transport.abort()
        else:
            self.pump()

    def eof_received(self) -> bool:
        """Go on serving a client that has closed its own side."""
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio passes it
        """Forget it."""
        self.caught_up.discard(self)

    def pause_writing(self) -> None:
        """Leave the fan-out while the socket is full."""
        self.full = True
        self.caught_up.discard(self)

    def resume_writing(self) -> None:
        """Catch up."""
        self.full = False
        self.pump()

    def pump(self) -> None:
        """Write until it has all or its socket is full."""
        while not self.full and (piece := self.stream.behind(self.at)):
            self.at += len(piece)
            self.transport.write(piece)
        if not self.full:
            self.caught_up.add(self)


async def serve(stream: common.Stream, listener: socket.socket, ready: int) -> None:
    """Serve for ever."""
    loop = asyncio.get_running_loop()
    caught_up: set[Client] = set()

    def fan_out() -> None:
        before, fresh = stream.grown()
        after = before + len(fresh)
        for client in list(caught_up):
            client.at = after
            client.transport.write(fresh)

    loop.add_reader(stream.watch.fileno(), fan_out)
    server = await loop.create_server(lambda: Client(stream, caught_up), sock=listener, backlog=common.BACKLOG)
    common.tell_ready(listener, ready)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*common.begin()))
