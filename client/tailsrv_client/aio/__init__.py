"""The clients on asyncio."""

from __future__ import annotations

from tailsrv_client.aio.consumer import AsyncConsumer
from tailsrv_client.aio.index import AsyncIndex
from tailsrv_client.aio.producer import AsyncProducer

__all__ = ["AsyncConsumer", "AsyncIndex", "AsyncProducer"]
