"""Requests into replies: from what is known, and, where the index turns out to be wrong, from the repaired index.

No request costs more than its own answer: whatever goes wrong with it is an error line.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from indexer.errors import CorruptIndexError, NotFoundError
from tailsrv_formats.errors import reason
from tailsrv_formats.index_query import KINDS, Malformed, Query, parse, render, render_error
from tailsrv_runtime.metrics import Histogram, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from indexer.follower import Follower
    from tailsrv_formats.index_file import Entry
    from tailsrv_runtime.reactor import Reactor

QUERY_SECONDS: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
)  # fmt: skip


class QueryHandler:
    """QueryHandler about the stream `file`, which `follower` follows."""

    def __init__(self, reactor: Reactor, file: str, follower: Follower) -> None:
        self._reactor = reactor
        self._file = file
        self._follower = follower
        self._asked = dict.fromkeys((*KINDS, "malformed"), 0)
        self._failed = 0
        self._duration = Histogram("tailsrv_index_query_seconds", "Time to answer a query.", QUERY_SECONDS)

    def answer(self, line: bytes) -> bytes:
        """The reply to a request; both are lines, the request without its newline."""
        begin = time.perf_counter()
        query = parse(line)
        if isinstance(query, Malformed):
            self._asked["malformed"] += 1
            return render_error(query.reason, query.is_json)
        self._asked[query.kind] += 1
        try:
            reply = self._reply(query)
        except NotFoundError as error:
            reply = render_error(str(error), query.is_json)
        except OSError as error:
            # A place of the disk that can't be read is no reason to take the other answers away.
            self._follower.met(error)
            reply = render_error(f"cannot read {error.filename or self._file}: {reason(error)}", query.is_json)
        except Exception as error:  # noqa: BLE001 - contained: what was asked costs one answer, whatever it meets
            self._reactor.contain(error, lambda: None)
            reply = render_error("no answer because of a bug, which the log has; please report it", query.is_json)
        self._duration.observe(time.perf_counter() - begin)
        return reply

    def _reply(self, query: Query) -> bytes:
        """The answer; where the index contradicts the stream, it is repaired before."""
        try:
            return self._find(query)
        except CorruptIndexError as error:
            self._failed += 1
            self._follower.repair(error)
        try:
            return self._find(query)
        except CorruptIndexError as error:
            self._follower.give_up(error)
            raise NotFoundError(f"{error}; the index is being rebuilt, ask again") from None

    def _find(self, query: Query) -> bytes:
        follower = self._follower
        if not follower.live:
            self._refuse_unknown(query, follower.known.arrivals.last())
        lookup, known = follower.known.lookup, follower.known.arrivals.last()
        try:
            if query.is_json:
                answer = lookup.answer(query)
                return render(answer if follower.is_current() else replace(answer, partial=True))
            number = query.value if query.kind == "number" else max(0, known.number - query.value)
            return b"%d\n" % lookup.offset_of(number)
        except NotFoundError:
            if follower.is_current() or follower.fd < 0:
                raise
            raise self._not_yet(known) from None

    def _refuse_unknown(self, query: Query, known: Entry) -> None:
        """While there is much to read yet, nobody knows where the stream ends, nor what lies beyond what was read."""
        follower, (kind, value) = self._follower, query[:2]
        if follower.fd < 0:
            # An index without entries is that of a stream without messages, which is what there is so far.
            if follower.known.index.count or follower.known.index.ahead or (kind == "number" and value > 0):
                raise NotFoundError(f"{self._file} is not there yet; ask again later")
            return
        if not follower.is_verified():
            raise NotFoundError(f"{follower.unreadable or 'the index is being compared'}; ask again later")
        is_known = (
            (kind == "number" and value < known.number)
            or (kind == "offset" and value < known.offset)
            or (kind == "time" and value <= known.time)
        )
        if not is_known:
            raise self._not_yet(known)

    def _not_yet(self, known: Entry) -> NotFoundError:
        follower = self._follower
        state = "ask again later"
        if follower.known.index.is_full():
            state = "stopped: the index cannot be written"
        elif follower.unreadable is not None:
            state = f"stopped: {follower.unreadable}"
        return NotFoundError(
            f"not indexed yet: {known.number} messages in {known.offset} of {follower.end} bytes so far; {state}"
        )

    def metrics(self) -> Iterator[Metric | Histogram]:
        """What it counts."""
        for kind, count in self._asked.items():
            yield Metric("counter", "tailsrv_index_queries", "Queries, by kind.", count, {"kind": kind})
        withheld = "Answers that the index and the stream disagreed about."
        yield Metric("counter", "tailsrv_index_mismatches", withheld, self._failed)
        yield self._duration
