"""The asyncio faces. `Consumer` needs none of these names: `async for` reaches them by itself."""

from __future__ import annotations

from tailsrv_client.aio.index import AsyncIndex
from tailsrv_client.aio.producer import AsyncProducer

__all__ = ["AsyncIndex", "AsyncProducer"]
