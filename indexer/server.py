"""The daemon: listens, follows the stream, answers queries."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from msgspec import structs

from collator.framing import make_framing
from indexer.clients import Clients
from indexer.following import Follower
from indexer.format import MismatchError
from indexer.lookup import UnknownError
from indexer.query import KINDS, Malformed, Query, parse, render, render_error
from tailsrv.kit.acceptor import Acceptor
from tailsrv.kit.access import AllowList
from tailsrv.kit.addresses import Listener, listeners_for
from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.measures import Histogram, Measure
from tailsrv.kit.shortage import Retried, spare_descriptors
from tailsrv.kit.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from indexer.format import Entry
    from indexer.options import Options
    from tailsrv.kit.logs import Log
    from tailsrv.kit.reactor import Reactor

QUERY_SECONDS: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
)  # fmt: skip


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
        self._gone_fd = -1
        self._follower: Follower | None = None
        self._clients = Clients(reactor, self._answer, self._look)
        self._asked = dict.fromkeys((*KINDS, "malformed"), 0)
        self._failed = 0
        self._reopening = Retried(reactor, log, "waiting for another file", self._open_stream, file=options.file)
        self._duration = Histogram("tailsrv_index_query_seconds", "Time to answer a query.", QUERY_SECONDS)

    # --- life

    def bind(self, ready: Callable[[], None]) -> None:
        """Open index and stream, and listen."""
        options = self._options
        self._listeners = listeners_for(options.listen)
        framing = make_framing(options.framing, options.max_message_bytes)
        self._follower = Follower(self._reactor, options, framing, self._log)
        self._follower.open()
        if options.rebuild and sys.stderr is not None and sys.stderr.isatty():
            from indexer.progress import Progress  # noqa: PLC0415 - for eyes only

            self._follower.progress = Progress(sys.stderr)
        self._open_stream()
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
        self._reopening.cancel()
        for acceptor in self._acceptors:
            acceptor.close()
        for listener in self._listeners[len(self._acceptors) :]:
            listener.close()
        self._clients.close()
        if self._stream is not None:
            self._stream.close()
        if self._follower is not None:
            self._follower.close()
        if self._gone_fd >= 0:
            os.close(self._gone_fd)

    # --- the stream

    def _open_stream(self) -> None:
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
        self._on_changed()

    def _on_changed(self) -> None:
        stream, follower = self._stream, self._follower
        assert stream is not None  # noqa: S101 - for the type checker: its callback
        assert follower is not None  # noqa: S101 - for the type checker: it is made first
        if stream.fd < 0:
            return
        if self._attached is not stream:
            self._attached = stream
            follower.attach(stream.fd, stream.end, stream.size)
            if self._gone_fd >= 0:
                os.close(self._gone_fd)
                self._gone_fd = -1
        else:
            follower.advance(stream.end, stream.size)

    def _on_gone(self) -> None:
        """Go on answering from the open file, and wait for another one of its name."""
        stream, follower = self._stream, self._follower
        assert stream is not None  # noqa: S101 - for the type checker: its callback
        assert follower is not None  # noqa: S101 - for the type checker: it is made first
        self._log.warning(
            "the file is gone", file=self._options.file, advice="what it held is answered until a new one"
        )
        follower.advance(stream.end, stream.size)
        try:
            with spare_descriptors():
                self._gone_fd = os.dup(stream.fd)
        except OSError as error:
            self._log.warning("the old file is not answered from", file=self._options.file, error=reason(error))
        follower.move(self._gone_fd)
        stream.close()
        self._reopening()

    def _on_failed(self, error: FatalError) -> None:
        raise error

    # --- queries

    def _look(self) -> None:
        """Who asks after an append gets an answer that knows of it, whether the kernel's event has come or not."""
        stream, follower = self._stream, self._follower
        assert stream is not None  # noqa: S101 - for the type checker: there are clients, so there is a stream
        assert follower is not None  # noqa: S101 - the same
        before = stream.end, stream.size
        stream.look()
        if (stream.end, stream.size) != before:
            self._on_changed()
        follower.catch_up()
        try:
            follower.lookup.check_file()
        except MismatchError as error:
            follower.repair(str(error))

    def _answer(self, line: bytes) -> bytes:
        begin = time.perf_counter()
        query = parse(line)
        if isinstance(query, Malformed):
            self._asked["malformed"] += 1
            return render_error(query.reason, query.is_json)
        self._asked[query.kind] += 1
        try:
            reply = self._find(query)
        except UnknownError as error:
            reply = render_error(str(error), query.is_json)
        except MismatchError as error:
            self._failed += 1
            assert self._follower is not None  # noqa: S101 - for the type checker: it was asked
            self._follower.repair(str(error))
            reply = render_error(f"{error}; the index is being repaired, ask again", query.is_json)
        except OSError as error:
            # A place of the disk that can't be read is no reason to take the other answers away.
            reply = render_error(f"cannot read {self._options.file} or its index: {reason(error)}", query.is_json)
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - a look-up changes nothing: this answer is all that it costs
            self._reactor.contain(error, lambda: None)
            reply = render_error("this question met a bug of the indexer, which is in its log", query.is_json)
        self._duration.observe(time.perf_counter() - begin)
        return reply

    def _find(self, query: Query) -> bytes:
        follower = self._follower
        assert follower is not None  # noqa: S101 - for the type checker: there are clients
        lookup, end = follower.lookup, follower.arrivals.last()
        if follower.fd < 0 and end.number:  # an index without its stream: nothing that it says can be checked
            raise UnknownError(f"{self._options.file} is not there yet; ask again later")
        partial = follower.fd >= 0 and (not follower.live or follower.behind_since is not None)
        if partial:
            self._refuse_unknown(query, end)
        if query.is_json:
            answer = lookup.answer(query)
            return render(structs.replace(answer, partial=True) if partial else answer)
        number = query.value if query.kind == "number" else max(0, end.number - query.value)
        return b"%d\n" % lookup.offset_of(number)

    def _refuse_unknown(self, query: Query, known: Entry) -> None:
        """While there is something to read yet, it is not known what lies beyond what was read.

        Nor, while there is much, where the stream ends; with little, that is answered as of a moment ago.
        """
        follower, (kind, value) = self._follower, query[:2]
        assert follower is not None  # noqa: S101 - for the type checker: it was asked
        is_known = (
            (kind == "number" and value < known.number)
            or (kind == "offset" and value < known.offset)
            or (kind == "time" and value <= known.time)
            or (kind in {"count", "last"} and follower.live)
        )
        if not is_known:
            state = "stopped: the index cannot be written" if follower.index.is_full() else "ask again later"
            raise UnknownError(
                f"not indexed yet: {known.number} messages in {known.offset} of {follower.end} bytes so far; {state}"
            )

    # --- how it is

    def measures(self) -> Iterable[Measure | Histogram]:
        """What it counts."""
        follower = self._follower
        assert follower is not None  # noqa: S101 - for the type checker: it serves
        known, index = follower.arrivals.last(), follower.index
        since = follower.behind_since
        prefix = "tailsrv_index"
        yield Measure("gauge", f"{prefix}_messages", "Messages in the stream, as far as it was read.", known.number)
        yield Measure("gauge", f"{prefix}_stream_bytes", "The stream's committed bytes.", follower.end)
        behind = follower.end - known.offset
        yield Measure("gauge", f"{prefix}_behind_bytes", "Committed bytes that no whole message is known in.", behind)
        seconds = 0.0 if since is None else time.monotonic() - since
        yield Measure("gauge", f"{prefix}_behind_seconds", "For how long there has been something to read.", seconds)
        yield Measure("gauge", f"{prefix}_entries", "Entries in the index.", index.count)
        yield Measure("gauge", f"{prefix}_file_bytes", "Size of the index.", index.size())
        yield Measure("counter", f"{prefix}_set_aside", "Indexes that were set aside.", follower.rebuilt)
        yield Measure("gauge", f"{prefix}_connections", "Clients that are connected.", len(self._clients))
        accepted = sum(acceptor.accepted for acceptor in self._acceptors)
        yield Measure("counter", f"{prefix}_accepted_connections", "Clients that were let in.", accepted)
        refused = sum(acceptor.refused for acceptor in self._acceptors)
        yield Measure("counter", f"{prefix}_refused_connections", "Clients that --allow kept out.", refused)
        for kind, count in self._asked.items():
            yield Measure("counter", f"{prefix}_queries", "Queries, by kind.", count, {"kind": kind})
        yield Measure("counter", f"{prefix}_mismatches", "Answers withheld: index and stream disagreed.", self._failed)
        yield self._duration

    def unhealthy(self) -> str | None:
        """Why it can't answer everything; None when it can."""
        return next((why for why in self._troubles() if why is not None), None)

    def _troubles(self) -> Iterator[str | None]:
        """All that may be wrong, what matters most first; None for what is not."""
        follower, file = self._follower, self._options.file
        assert follower is not None  # noqa: S101 - for the type checker: it serves
        if follower.fd < 0:
            yield self._reopening.paused or f"waiting for {file}"
        if self._gone_fd >= 0:
            yield f"{file} is gone"
        if follower.unreadable is not None:
            yield f"{file} cannot be read: {follower.unreadable}"
        if self._stream is not None:
            yield self._stream.unhealthy()
        if follower.index.trouble is not None:
            yield f"{self._options.index} cannot be written: {follower.index.trouble}"
        if follower.walker.nonsense is not None:
            yield f"{file} makes no sense at offset {follower.walker.boundary}"
        if not follower.live:
            yield f"indexing: {follower.arrivals.last().offset} of {follower.end} bytes"
