"""A byte-level client of the broadcaster, and what all clients know of connections.

Pure are `reader` (where a reader is in a stream), `ports` (how each port answers, and what a wrong one looks like),
`servers` (which address to try, when, and which have proven right) and `talk` (what is said on connections, as
generators of steps). `lookup` resolves host names; `line` holds talks on blocking sockets, as `tailsrv_client.aio`
does on asyncio; `byteclient` is a reader on blocking sockets.
"""

from __future__ import annotations

from tailsrv.client.byteclient import CHUNK_BYTES, ByteClient, Waits
from tailsrv.client.errors import ClientError, GaveUpError, UnknownHostError, WrongPortError
from tailsrv.client.line import connect, keep_alive
from tailsrv.client.reader import CHECKED_BYTES, LARGEST_OFFSET, Position, Reader, StreamDiverged, digest
from tailsrv.client.servers import Rotation, Servers, parse_addresses
from tailsrv.client.talk import CONNECT_SECONDS

__all__ = [
    "CHECKED_BYTES",
    "CHUNK_BYTES",
    "CONNECT_SECONDS",
    "LARGEST_OFFSET",
    "ByteClient",
    "ClientError",
    "GaveUpError",
    "Position",
    "Reader",
    "Rotation",
    "Servers",
    "StreamDiverged",
    "UnknownHostError",
    "Waits",
    "WrongPortError",
    "connect",
    "digest",
    "keep_alive",
    "parse_addresses",
]
