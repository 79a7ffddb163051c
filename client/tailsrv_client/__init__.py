"""Clients of tailsrv: read a stream, write one, look up places in it, log to one.

    Consumer          the messages of a stream                           AsyncConsumer
    Producer          messages into a stream, each with a receipt        AsyncProducer
    Index             message numbers, times and bytes into offsets      AsyncIndex
    TailsrvHandler    Python's logging into a stream

The two faces of each have the same methods, parameters and errors. They need the standard library and msgspec;
asyncio is imported by the first use of an asyncio face. Every error is a `TailsrvError`, or an `OSError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailsrv_client.blocking.consumer import Consumer
from tailsrv_client.blocking.index import Index
from tailsrv_client.blocking.logging_handler import TailsrvHandler
from tailsrv_client.blocking.producer import Producer, Receipt
from tailsrv_client.checkpoint import CheckpointStore, FileCheckpointStore, SQLiteCheckpointStore
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
from tailsrv_client.protocol.lag import Lag
from tailsrv_client.protocol.messages import Message
from tailsrv_client.protocol.requests import Entry
from tailsrv_client.protocol.timeouts import Timeouts
from tailsrv_formats.checkpoint import Checkpoint
from tailsrv_formats.errors import TailsrvError, UsageError
from tailsrv_formats.framing import FramingError
from tailsrv_formats.position import Position

if TYPE_CHECKING:
    from tailsrv_client.aio import AsyncConsumer, AsyncIndex, AsyncProducer

__version__ = "1.0.0"

__all__ = [
    "AsyncConsumer",
    "AsyncIndex",
    "AsyncProducer",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "Consumer",
    "Entry",
    "FileCheckpointStore",
    "FramingError",
    "GaveUpError",
    "Index",
    "IndexFailed",
    "Lag",
    "Message",
    "Position",
    "Producer",
    "ProducerDiverged",
    "ProducerFull",
    "ProducerRefused",
    "Receipt",
    "SQLiteCheckpointStore",
    "StreamDiverged",
    "TailsrvError",
    "TailsrvHandler",
    "Timeouts",
    "UnknownHostError",
    "UsageError",
    "WrongPortError",
    "__version__",
]


def __getattr__(name: str) -> object:
    """The asyncio faces, when they are asked for."""
    if name in {"AsyncConsumer", "AsyncIndex", "AsyncProducer"}:
        from tailsrv_client import aio  # noqa: PLC0415 - asyncio costs more than all the rest

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
