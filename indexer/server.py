"""The daemon: listens, follows the stream, answers queries."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from indexer.clients import Clients
from indexer.follower import Follower
from indexer.known import RETRY_SECONDS
from indexer.query_handler import QueryHandler
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import Listener, listeners_for
from tailsrv_runtime.metrics import Histogram, Metric
from tailsrv_runtime.shortage import Retried
from tailsrv_runtime.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from indexer.options import Options
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer


class IndexServer:
    """`tailsrv-index` for one file."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        self._reactor = reactor
        self._options = options
        self._log = log
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._listeners: list[Listener] = []
        self._acceptors: list[Acceptor] = []
        self._stream: Stream | None = None
        self._attached: Stream | None = None
        self._opening = Retried(reactor, log, "watching the file", self._try_to_open, file=options.file)
        self._unusable: str | None = None  # why what bears the file's name can't be served
        self._reopening: Timer | None = None
        self._gone_fd = -1
        self._follower: Follower | None = None
        self._answers: QueryHandler | None = None
        self._clients = Clients(reactor, self._answer, self._look)

    # --- life

    def bind(self, ready: Callable[[], None]) -> None:
        """Open index and stream, and listen."""
        options = self._options
        self._listeners = listeners_for(options.listen)
        framing = make_framing(options.framing, options.max_message_bytes)
        self._follower = Follower(self._reactor, options, framing, self._log)
        self._follower.reopen = self._reopen
        self._answers = QueryHandler(self._reactor, options.file, self._follower)
        if options.rebuild and sys.stderr is not None and sys.stderr.isatty():
            from indexer.progress import Progress  # noqa: PLC0415 - for eyes only

            self._follower.progress = Progress(sys.stderr)
        self._open_stream()
        self._on_changed()
        allow = AllowList(options.allow)
        for listener in self._listeners:
            self._acceptors.append(
                Acceptor(self._reactor, listener, allow, lambda sock, _peer: self._clients.add(sock), self._log)
            )
        self.addresses = {"index": tuple(listener.address for listener in self._listeners)}
        ready()

    def stop(self) -> None:
        """Nothing is promised that is not done: what was answered is answered."""
        self._reactor.stop()

    def close(self) -> None:
        """Give everything back."""
        for acceptor in self._acceptors:
            acceptor.close()
        for listener in self._listeners[len(self._acceptors) :]:
            listener.close()
        self._clients.close()
        self._opening.cancel()
        if self._reopening is not None:
            self._reopening.cancel()
        if self._stream is not None:
            self._stream.close()
        if self._follower is not None:
            self._follower.close()
        if self._gone_fd >= 0:
            os.close(self._gone_fd)

    # --- the stream

    def _open_stream(self) -> None:
        """Watch the file, and open it if there is one. Raises `FatalError`, and `OSError` for a shortage."""
        stream = Stream(
            self._reactor,
            self._options.file,
            self._log,
            changed=self._on_changed,
            gone=self._on_gone,
            failed=self._on_failed,
            use_mark=self._options.commit_mark,
            poll_seconds=self._options.poll,
        )
        try:
            stream.open()
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        self._unusable = None

    def _open_again(self) -> None:
        """Open the stream that has the name now, or as soon as there is one that can be served."""
        self._reopening = None
        self._opening()

    def _try_to_open(self) -> None:
        try:
            self._open_stream()
        except FatalError as error:
            self._on_failed(error)
            return
        # Not from here: a handler of the stream before may be running.
        self._reactor.post(self._on_changed)

    def _on_changed(self) -> None:
        stream, follower = self._stream, self._follower
        assert follower is not None  # noqa: S101 - for the type checker: it is made first
        if stream is None or stream.fd < 0:
            return
        if self._attached is not stream:
            self._attached = stream
            try:
                follower.attach(stream.fd, stream.end)
            except FatalError as error:
                self._on_failed(error)
                return
            self._forget_gone()
        else:
            follower.advance(stream.end)

    def _on_gone(self) -> None:
        """Go on answering from the open file, and wait for another one of its name."""
        stream = self._stream
        assert stream is not None  # noqa: S101 - for the type checker: its callback
        self._log.warning(
            "the file is gone", file=self._options.file, advice="what it held is answered until a new one"
        )
        self._on_changed()
        # Its descriptor is taken over: for a copy of it there might be none.
        self._gone_fd, stream.fd = stream.fd, -1
        self._close_stream()
        self._open_again()

    def _on_failed(self, error: FatalError) -> None:
        """What bears the file's name now can't be served. It is looked at again and again; somebody may mend it."""
        if self._unusable != str(error):
            self._log.error("the file cannot be served", error=str(error))
        self._unusable = str(error)
        self._close_stream()
        self._reopening = self._reactor.call_later(RETRY_SECONDS, self._open_again)

    def _reopen(self) -> None:
        """The descriptor of the file is good for nothing any more."""
        assert self._follower is not None  # noqa: S101 - for the type checker: its callback
        self._follower.detach()
        self._forget_gone()
        self._close_stream()
        self._open_again()

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _forget_gone(self) -> None:
        if self._gone_fd >= 0:
            os.close(self._gone_fd)
            self._gone_fd = -1

    # --- queries

    def _look(self) -> None:
        """Who asks after an append gets an answer that knows of it, whether the kernel's event has come or not."""
        stream = self._stream
        if stream is None:
            return
        before = stream.end
        try:
            stream.look()
        except FatalError as error:
            self._on_failed(error)
            return
        if stream.end != before:
            self._on_changed()
        if self._follower is not None:
            self._follower.catch_up()

    def _answer(self, line: bytes) -> bytes:
        assert self._answers is not None  # noqa: S101 - for the type checker: there are clients
        return self._answers.answer(line)

    # --- how it is

    def metrics(self) -> Iterable[Metric | Histogram]:
        """What it counts."""
        follower = self._follower
        assert follower is not None  # noqa: S101 - for the type checker: it serves
        known, index = follower.known.arrivals.last(), follower.known.index
        rebuilt, repaired = follower.known.rebuilt, follower.known.repaired
        since = follower.behind_since
        prefix = "tailsrv_index"
        yield Metric("gauge", f"{prefix}_messages", "Messages in the stream, as far as it was read.", known.number)
        yield Metric("gauge", f"{prefix}_stream_bytes", "The stream's committed bytes.", follower.end)
        behind = follower.end - known.offset
        yield Metric("gauge", f"{prefix}_behind_bytes", "Committed bytes that no whole message is known in.", behind)
        seconds = 0.0 if since is None else time.monotonic() - since
        yield Metric("gauge", f"{prefix}_behind_seconds", "For how long there has been something to read.", seconds)
        yield Metric("gauge", f"{prefix}_entries", "Entries in the index.", index.count)
        yield Metric("gauge", f"{prefix}_file_bytes", "Size of the index.", index.size())
        yield Metric("counter", f"{prefix}_set_aside", "Indexes that were set aside.", rebuilt)
        yield Metric("counter", f"{prefix}_repaired", "Entries that were wrong and written again.", repaired)
        yield Metric("gauge", f"{prefix}_connections", "Clients that are connected.", len(self._clients))
        accepted = sum(acceptor.accepted for acceptor in self._acceptors)
        yield Metric("counter", f"{prefix}_accepted_connections", "Clients that were let in.", accepted)
        refused = sum(acceptor.refused for acceptor in self._acceptors)
        yield Metric("counter", f"{prefix}_refused_connections", "Clients that --allow kept out.", refused)
        if self._answers is not None:
            yield from self._answers.metrics()

    def unhealthy(self) -> str | None:
        """Why it can't answer everything; None when it can."""
        return next(self._complaints(), None)

    def _complaints(self) -> Iterator[str]:
        """All that is wrong, the most important first."""
        follower, file = self._follower, self._options.file
        assert follower is not None  # noqa: S101 - for the type checker: it serves
        if self._gone_fd >= 0:
            yield f"{file} is gone"
        stream = None if self._stream is None else self._stream.unhealthy()
        yield from filter(None, (self._opening.paused, self._unusable, follower.unreadable, stream))
        if follower.fd < 0:
            yield f"waiting for {file}"
        index = follower.known.index
        if index.write_error is not None:
            yield f"{self._options.index} cannot be written: {index.write_error}; {index.advice}"
        if follower.walker.framing_error is not None:
            yield f"{file} makes no sense at offset {follower.walker.boundary}"
        if not follower.live:
            yield f"indexing: {follower.known.arrivals.last().offset} of {follower.end} bytes"
