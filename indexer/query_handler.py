"""Turns requests into replies, and has the index repaired if the stream contradicts it.

A request costs no more than its own reply: whatever goes wrong with it is an error line.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from indexer.errors import CorruptIndexError, NotFoundError
from tailsrv_formats.errors import reason
from tailsrv_formats.index_query import KINDS, Malformed, Query, parse, render, render_error
from tailsrv_runtime.metrics import Histogram, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from indexer.follower import Follower
    from tailsrv_runtime.reactor import Reactor

QUERY_SECONDS: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
)  # fmt: skip


class QueryHandler:
    """Answers requests about the stream `file`, which `follower` indexes."""

    def __init__(self, reactor: Reactor, file: str, follower: Follower) -> None:
        self._reactor = reactor
        self._file = file
        self._follower = follower
        self._offset_of = follower.offset_of
        self._queries = dict.fromkeys((*KINDS, "malformed"), 0)
        self._contradictions = 0
        self._seconds = Histogram("tailsrv_index_query_seconds", "Time to answer a query.", QUERY_SECONDS)

    def answer(self, line: bytes) -> bytes:
        """The reply to a request; the reply is a line, the request comes without its newline."""
        begin = time.perf_counter()
        query = parse(line)
        if isinstance(query, Malformed):
            self._queries["malformed"] += 1
            return render_error(query.reason, query.is_json)
        self._queries[query.kind] += 1
        try:
            reply = self._find(query)
        except CorruptIndexError as error:
            reply = self._find_repaired(query, error)
        except (NotFoundError, OSError) as error:
            reply = self._refusal(query, error)
        except Exception as error:  # noqa: BLE001 - contained: a query costs one answer, whatever it meets
            reply = self._bug(query, error)
        self._seconds.observe(time.perf_counter() - begin)
        return reply

    def _find(self, query: Query) -> bytes:
        return render(self._follower.answer(query)) if query.is_json else b"%d\n" % self._offset_of(query)

    def _find_repaired(self, query: Query, error: CorruptIndexError) -> bytes:
        """The reply from the repaired index."""
        self._contradictions += 1
        try:
            self._follower.repair(error)
            try:
                return self._find(query)
            except CorruptIndexError as second:
                self._follower.cut(second)
                raise NotFoundError(f"{second}; the index is being rebuilt, ask again later") from None
        except (NotFoundError, OSError) as failure:
            return self._refusal(query, failure)
        except Exception as bug:  # noqa: BLE001 - as above
            return self._bug(query, bug)

    def _refusal(self, query: Query, error: NotFoundError | OSError) -> bytes:
        if isinstance(error, NotFoundError):
            return render_error(str(error), query.is_json)
        # A place of the disk that can't be read costs the answers that need it, and no others.
        self._follower.on_read_error(error)
        return render_error(f"cannot read {error.filename or self._file}: {reason(error)}", query.is_json)

    def _bug(self, query: Query, error: Exception) -> bytes:
        self._reactor.contain(error, lambda: None)
        return render_error("no answer because of a bug; the log has its place, please report it", query.is_json)

    def metrics(self) -> Iterator[Metric | Histogram]:
        """How many queries there were, and how long they took."""
        for kind, count in self._queries.items():
            yield Metric("counter", "tailsrv_index_queries", "Queries, by kind.", count, {"kind": kind})
        text = "Queries for which the stream contradicted the index."
        yield Metric("counter", "tailsrv_index_mismatches", text, self._contradictions)
        yield self._seconds
