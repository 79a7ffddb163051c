"""Message-level clients: read a stream, write one, find one's way in it, log to one.

    Consumer          messages of a stream, with `for` or `async for`
    Producer          messages into a stream, each with a receipt        AsyncProducer
    Index             message numbers, times and bytes into offsets      AsyncIndex
    TailsrvHandler    Python's logging into a stream

Standard library and msgspec alone; asyncio is imported by the first use of an asyncio face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailsrv_client.blocking.consumer import Consumer
from tailsrv_client.blocking.index import Index
from tailsrv_client.blocking.logging_handler import TailsrvHandler
from tailsrv_client.blocking.producer import Producer, Receipt
from tailsrv_client.errors import (
    CheckpointError,
    GaveUpError,
    IndexFailed,
    ProducerDiverged,
    ProducerFull,
    ProducerRefused,
    StreamDiverged,
    UnknownHostError,
    WrongPortError,
)
from tailsrv_client.protocol.messages import Message
from tailsrv_client.protocol.requests import Entry
from tailsrv_client.protocol.timeouts import Waits
from tailsrv_formats.errors import TailsrvError, UsageError
from tailsrv_formats.framing import FramingError
from tailsrv_formats.position import Position

if TYPE_CHECKING:
    from tailsrv_client.aio import AsyncIndex, AsyncProducer

__all__ = [
    "AsyncIndex",
    "AsyncProducer",
    "CheckpointError",
    "Consumer",
    "Entry",
    "FramingError",
    "GaveUpError",
    "Index",
    "IndexFailed",
    "Message",
    "Position",
    "Producer",
    "ProducerDiverged",
    "ProducerFull",
    "ProducerRefused",
    "Receipt",
    "StreamDiverged",
    "TailsrvError",
    "TailsrvHandler",
    "UnknownHostError",
    "UsageError",
    "Waits",
    "WrongPortError",
]


def __getattr__(name: str) -> object:
    """The asyncio faces, when they are asked for."""
    if name in {"AsyncIndex", "AsyncProducer"}:
        from tailsrv_client import aio  # noqa: PLC0415 - asyncio costs more than all the rest

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
