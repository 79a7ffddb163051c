"""A spool's file work for an event loop: each call runs in a thread, so that a slow disk does not block the loop."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.protocol.outbox import Acknowledgeable, Outbox
    from tailsrv_client.spool import Spool

THREADS: Final = 3
"""One appends, one reads and one rewrites."""

P = ParamSpec("P")
R = TypeVar("R")


class Disk:
    """`spool` awaited, in threads of its own: those of the loop may be taken by the application."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._threads = ThreadPoolExecutor(THREADS, "tailsrv-spool")
        self._loading: asyncio.Task[None] | None = None
        self._queue: list[tuple[bytes, Acknowledgeable | None]] = []
        self._written: asyncio.Future[None] | None = None
        """For those in the queue: done when they are in the file."""
        self._writing: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self.waiting: int = 0
        """Bytes of messages that are not in the file yet."""
        self.loaded: bool = False
        self._error: BaseException | None = None
        self._closed = False

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` in a thread."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def load(self) -> None:
        """Read what the file holds, once. Raises `CheckpointError`."""
        if self._loading is None:
            self._loading = asyncio.create_task(self.run(self._spool.load))
        await asyncio.shield(self._loading)
        self.loaded = True

    async def append(self, outbox: Outbox, message: bytes, waiting: Acknowledgeable | None) -> None:
        """Append, together with all that is to be appended at this time. Raises `OSError`; it is not kept then."""
        self._queue.append((message, waiting))
        self.waiting += len(message)
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        written = self._written
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(outbox))
        # Shielded: an append in a thread cannot be taken back when the caller is cancelled.
        await asyncio.shield(written)

    async def _write(self, outbox: Outbox) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                written, self._written = self._written, None
                assert written is not None  # noqa: S101 - `append` makes it with the first of a queue
                # Before the thread appends: they may be acknowledged before we know that they are in the file.
                outbox.announce((len(message), waiting) for message, waiting in batch)
                try:
                    await self.run(self._spool.append, b"".join(message for message, _ in batch))
                except Exception as error:  # noqa: BLE001 - it is raised by each `append`
                    outbox.withdraw([waiting for _, waiting in batch if waiting is not None])
                    written.set_exception(error)
                    written.exception()  # all of them may have been cancelled
                else:
                    written.set_result(None)
                self.waiting -= sum(len(message) for message, _ in batch)
        finally:
            self._writing = None

    async def tidy(self) -> None:
        """Wait for an anchor to be durable, but not for a rewriting of the file. Raises as `Spool.tidy`."""
        if self._error is not None:
            raise self._error
        if not self._spool.untidy or (self._spool.anchored and self._tidying is not None):
            return
        if self._tidying is not None:
            await asyncio.shield(self._tidying)
        self._tidying = asyncio.create_task(self.run(self._spool.tidy))
        self._tidying.add_done_callback(self._tidied)
        if not self._spool.anchored:
            await asyncio.shield(self._tidying)

    def _tidied(self, task: asyncio.Task[None]) -> None:
        self._tidying = None
        # What failed for want of a disk is tried again; damage that was found is the producer's end.
        if not task.cancelled() and not isinstance(error := task.exception(), OSError):
            self._error = error

    async def close(self) -> None:
        """Let another process have the file, when what is being written is in it."""
        if self._closed:
            return
        self._closed = True
        busy = [one for one in (self._writing, self._loading) if one is not None]
        await asyncio.gather(*busy, return_exceptions=True)
        await asyncio.shield(asyncio.create_task(self.run(self._spool.close)))
        self._threads.shutdown(wait=False)
