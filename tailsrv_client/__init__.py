"""Message-level clients: read a stream, write one, find one's way in it, log to one.

    Consumer          messages of a stream, with `for` or `async for`
    Producer          messages into a stream, each with a receipt        AsyncProducer
    Index             message numbers, times and bytes into offsets      AsyncIndex
    TailsrvHandler    Python's logging into a stream

Standard library and msgspec alone; asyncio is imported by the first use of an asyncio face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collator.framing import FramingError
from tailsrv.client import Position, StreamDiverged, Waits
from tailsrv.kit.errors import UsageError
from tailsrv_client.consumer import Consumer
from tailsrv_client.errors import (
    CheckpointError,
    ClientError,
    GaveUpError,
    IndexFailed,
    ProducerDiverged,
    ProducerFull,
    ProducerRefused,
    UnknownHostError,
    WrongPortError,
)
from tailsrv_client.handler import TailsrvHandler
from tailsrv_client.index import Index
from tailsrv_client.messages import Message
from tailsrv_client.producer import Producer, Receipt
from tailsrv_client.queries import Entry

if TYPE_CHECKING:
    from tailsrv_client.aio import AsyncIndex, AsyncProducer

__all__ = [
    "AsyncIndex",
    "AsyncProducer",
    "CheckpointError",
    "ClientError",
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
