"""A connection for asyncio as a plain non-blocking socket: no buffers of asyncio's own, so no limits of theirs."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from tailsrv.client import CONNECT_SECONDS, keep_alive

if TYPE_CHECKING:
    from tailsrv.kit.addresses import Address


async def connect(address: Address, timeout: float = CONNECT_SECONDS) -> socket.socket:  # noqa: ASYNC109 - as `tailsrv.client.connect`
    """A non-blocking connection to `address`. Raises `OSError`, `TimeoutError` included."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        if address.path is not None:
            return await _connect(socket.AF_UNIX, address.path)
        found = await loop.getaddrinfo(address.host or "localhost", address.port, type=socket.SOCK_STREAM)
        for family, _, _, _, target in found[:-1]:
            try:
                return await _connect(family, target)
            except OSError:
                continue  # the last one says why
        family, _, _, _, target = found[-1]
        return await _connect(family, target)


async def _connect(family: int, target: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)  # type: ignore[arg-type]  # typed for TCP alone
        if family != socket.AF_UNIX:
            keep_alive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def readable(sock: socket.socket) -> None:
    """Wait until `sock` can be read. Nothing is read: a caller that is cancelled here has lost no byte."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
