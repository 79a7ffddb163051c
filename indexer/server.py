"""The daemon: it listens, follows FILE, and answers queries.

One thread; only builder processes work beside it. A request goes from `clients` to `query_handler` to `follower`, which
asks the index of the opened stream, and its reply comes back the same way. `source` reports FILE to `follower`.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from indexer.clients import Clients
from indexer.follower import Follower
from indexer.query_handler import QueryHandler
from indexer.source import StreamSource
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.listeners import listeners_for
from tailsrv_runtime.metrics import Metric

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

    from indexer.options import Options
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.metrics import Histogram
    from tailsrv_runtime.reactor import Reactor


class IndexServer:
    """`tailsrv-index` for one file. See `tailsrv_runtime.daemon.Server`."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        """Listen, open the index and FILE. Raises `FatalError`, `UsageError`, `OSError`."""
        self._reactor = reactor
        framing = make_framing(options.framing, options.max_message_bytes)
        with contextlib.ExitStack() as opened:
            listeners = listeners_for(options.listen)
            for listener in listeners:
                opened.callback(listener.close)
            self._follower = Follower(
                reactor, options, framing, log, on_stale=self._on_stale, on_progress=_progress(options)
            )
            opened.callback(self._follower.close)
            self._source = StreamSource(reactor, options, log, self._follower)
            opened.callback(self._source.close)
            self._queries = QueryHandler(reactor, options.file, self._follower)
            self._clients = Clients(reactor, self._queries.answer, self._on_requests)
            opened.callback(self._clients.close)
            allow = AllowList(options.allow)
            self._acceptors = []
            for listener in listeners:
                acceptor = Acceptor(reactor, listener, allow, self._on_connected, log)
                opened.callback(acceptor.close)
                self._acceptors.append(acceptor)
            self.addresses = {"index": tuple(listener.address for listener in listeners)}
            self._opened = opened.pop_all()

    def bind(self, ready: Callable[[], None]) -> None:
        """The constructor has bound everything."""
        ready()

    def stop(self) -> None:
        """End at once: nothing is promised that is not done."""
        self._reactor.stop()

    def close(self) -> None:
        """Close all connections, FILE and the index."""
        self._opened.close()

    # --- events

    def _on_connected(self, sock: socket.socket, _peer: str) -> None:
        self._clients.add(sock)

    def _on_requests(self) -> None:
        """A client that asks after an append gets an answer that knows of it."""
        self._source.look()
        self._follower.catch_up()

    def _on_stale(self) -> None:
        self._source.reopen()

    # --- metrics and health

    def metrics(self) -> Iterable[Metric | Histogram]:
        """What it counts."""
        prefix = "tailsrv_index"
        yield from self._follower.metrics()
        yield Metric("gauge", f"{prefix}_connections", "Connected clients.", len(self._clients))
        accepted = sum(acceptor.accepted for acceptor in self._acceptors)
        yield Metric("counter", f"{prefix}_accepted_connections", "Accepted connections.", accepted)
        refused = sum(acceptor.refused for acceptor in self._acceptors)
        yield Metric("counter", f"{prefix}_refused_connections", "Connections that --allow refused.", refused)
        yield from self._queries.metrics()

    def unhealthy(self) -> str | None:
        """Why it can't answer everything; None when it can."""
        return next(self._problems(), None)

    def _problems(self) -> Iterator[str]:
        yield from self._source.problems()
        yield from self._follower.problems()


def _progress(options: Options) -> Callable[[int, int], None]:
    """What shows how far a rebuild is."""
    if options.rebuild and sys.stderr is not None and sys.stderr.isatty():
        from tailsrv_runtime.progress import ProgressBar  # noqa: PLC0415 - only a person at a terminal needs it

        return ProgressBar(sys.stderr, "indexing")
    return _no_progress


def _no_progress(_done: int, _total: int) -> None:
    pass
