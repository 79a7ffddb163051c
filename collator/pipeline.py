"""The pipeline of a recovered stream: from the producers' sockets through batches to commits and acknowledgements.

In each round of the loop, the scheduler reads from the ready connections into one batch. After the round that batch is
committed; while a commit is under way, the next rounds go on filling it.

| step                                             | module                                                     |
| ------------------------------------------------ | ---------------------------------------------------------- |
| a socket is ready: read it into the batch        | raw_producer, acked_producer → ingress → batch_builder     |
| after the round: begin a commit                  | pipeline → committer → diskwriter → streamfile, journal    |
| written (and synced): move the commit mark       | committer → sidecars                                       |
| committed: free the memory, acknowledge          | committer → pipeline → batch_builder, acked_producer       |
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from collator.acked_producer import AckedPort
from collator.batch_builder import BATCH_CHUNKS, BatchBuilder
from collator.committer import IDLE, Committer
from collator.ingress import IngressScheduler
from collator.raw_producer import RawPort
from collator.sidecars import Sidecars
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.batch_builder import Batch
    from collator.options import Options
    from collator.startup import Stream
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

EVENTS_BYTES: Final = 1 << 16

DRAIN_SECONDS: Final = 5.0
"""How long a stop waits for memory; bytes that are still in the kernel then are not accepted."""


class Pipeline:
    """The work on one stream, from its recovery to the stop of the daemon."""

    def __init__(
        self, reactor: Reactor, options: Options, stream: Stream, log: Log, stop_accepting: Callable[[], None]
    ) -> None:
        """``stop_accepting()`` accepts the connections that the kernel has queued, and closes the listeners."""
        self._reactor = reactor
        self._options = options
        self._stream = stream
        self._log = log
        self._stop_accepting = stop_accepting
        self._file = file = stream.file
        recovered = stream.recovered
        self._watches = stream.watches
        framing = make_framing(options.framing, options.max_message_bytes)
        self.builder = BatchBuilder(
            framing,
            options.buffer_bytes,
            start=recovered.end,
            # Without a sync a commit is quick: as soon as a chunk is full, while the cache still holds it.
            batch_chunks=BATCH_CHUNKS if options.sync.kind == "always" else 1,
            count=options.metrics is not None,
        )
        self.known = recovered.producers
        """The progress of every named producer that there ever was."""
        self._sidecars = Sidecars(reactor, file, recovered, stream.watches, log=log, noticed=self._on_lost)
        self.committer = Committer(
            reactor,
            file=file,
            sidecars=self._sidecars,
            workers=(stream.file_worker, stream.journal_worker),
            sync=options.sync,
            log=log,
            committed=self._committed,
            producers=self.known,
        )
        self._scheduler = IngressScheduler(
            reactor, self.builder, log, commit=self._try_commit, busy=lambda: self.committer.state is not IDLE
        )
        self.raw = RawPort(reactor, self._scheduler, framing, log, check=not options.accept_any_message)
        self.acknowledged = AckedPort(reactor, self._scheduler, self.known, log)
        self._stop_requested = self._stopping = self._drained = self._syncing = False
        self._drain_ends = 0.0
        self.bytes = 0
        """Bytes committed since the start."""
        self.messages = 0
        """Messages committed since the start, where they are counted."""
        reactor.register(self._watches.fd, READ, self._on_file_event)
        reactor.after_round(self._after_round)

    # --- batches and commits

    def _after_round(self) -> None:
        self._try_commit()
        scheduler, committer = self._scheduler, self.committer
        scheduler.closed = self._stopping or committer.obstacle is not None
        if scheduler.crowded and not scheduler.closed:
            scheduler.resume()
            self._try_commit()
        if self._stopping:
            self._finish()

    def _try_commit(self) -> bool:
        """Begin to commit the batch, if there are messages and no commit is under way. Returns whether one began."""
        committer, builder = self.committer, self.builder
        if committer.state is not IDLE or not builder.batch.size:
            return False
        batch = builder.take()
        committer.commit(batch, self.acknowledged.progressed(batch) if batch.runs else [])
        return True

    def _committed(self, batch: Batch) -> None:
        self.bytes += batch.size
        self.messages += batch.messages
        self.builder.release(batch)
        if batch.runs:
            self.acknowledged.committed(batch)

    def unhealthy(self) -> str | None:
        """Why messages are not read, or not committed, at the moment; None when they are."""
        return self.committer.blocked or self.committer.slow or self._scheduler.paused

    # --- the end

    def stop(self) -> None:
        """Commit what was sent until now, acknowledge it, and stop the loop. A second call stops it at once."""
        if self._stop_requested:
            self._reactor.stop()
            return
        self._stop_requested = True
        self._begin_stop()

    def _begin_stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._stop_accepting()
        self.raw.release()
        self._scheduler.begin_drain()
        self._drain_ends = time.monotonic() + DRAIN_SECONDS

    def _finish(self) -> None:
        committer = self.committer
        if committer.obstacle is not None:
            waiting = self.builder.batch.size + committer.uncommitted_bytes
            self._log.warning("stopped with uncommitted bytes", file=self._file.path, uncommitted_bytes=waiting)
            self._reactor.stop()
            return
        while not self._drained:
            self._drained = self._scheduler.drain()
            if not self._try_commit():
                if self._scheduler.waits and not self._drained:
                    if time.monotonic() < self._drain_ends:
                        return
                    self._log.warning("stopped out of memory", file=self._file.path, why=self._scheduler.paused)
                self._drained = self._drained or committer.state is IDLE  # nothing can make room any more
                break
            if committer.state is not IDLE:
                break
        if committer.state is not IDLE or self.builder.batch.size or not self._drained or self._syncing:
            return
        if self._options.sync.kind == "interval":
            self._syncing = True
            committer.sync_finally(self._reactor.stop)
        else:
            self._reactor.stop()

    def close(self) -> None:
        """Close the connections, and the files unless a thread still uses them: the process is about to end anyway."""
        self.committer.close()
        self.raw.close()
        self.acknowledged.close()
        self._reactor.unregister(self._watches.fd)
        if not (self.committer.uses_files or self._syncing):
            self._sidecars.close()
            self._stream.close()

    # --- changes of the files by others

    def _on_file_event(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._watches.fd, EVENTS_BYTES)  # `look` checks all files
        if not self._stopping:
            self.look()

    def _on_lost(self) -> None:
        if not self._stopping:
            self.committer.look()

    def look(self) -> None:
        """Check whether FILE, its journal and its commit mark are still in their places."""
        if not self._file.is_gone():
            self.committer.look()
            return
        if not os.fstat(self._file.fd).st_nlink:
            raise FatalError(
                f"{self._file.path} was deleted while the collator wrote it; nothing more is acknowledged. To begin a"
                " new stream, remove the deleted one's .commit and .producers files and start again"
            )
        self._log.warning(
            "stream moved", file=self._file.path, advice="move FILE.commit and FILE.producers too, then start again"
        )
        self._begin_stop()
