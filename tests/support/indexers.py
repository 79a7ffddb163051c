"""Indexers, and a client that asks them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from tests.support.daemons import Daemon
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.naive_index import Truth


def index(path: Path, *options: object, **settings: Any) -> Daemon:
    """An indexer of the file at `path` on a port of its own."""
    return Daemon("tailsrv-index", path, "--listen", "127.0.0.1:0", *map(str, options), **settings)


class Asker:
    """A client that asks one thing at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self.sock = daemon.connect()
        self._lines = self.sock.makefile("rb")

    def line(self, request: str) -> str:
        """The reply to a request, both without newline."""
        self.sock.sendall(request.encode() + b"\n")
        return self.next()

    def next(self) -> str:
        """The next reply."""
        reply = self._lines.readline()
        assert reply.endswith(b"\n"), f"cut off: {reply!r}"
        return reply[:-1].decode("ascii")

    def ask(self, **query: object) -> dict[str, Any]:
        """The reply to a query in JSON."""
        reply: dict[str, Any] = json.loads(self.line(json.dumps(query)))
        return reply

    def count(self) -> int:
        """How many messages there are; waits until that is known."""
        found: dict[str, Any] = {}

        def is_known() -> bool:
            found.update(self.ask(count=True))
            return "count" in found

        wait_until(is_known, "the stream is indexed")
        return int(found["count"])

    def assert_answers(self, truth: Truth, numbers: Sequence[int]) -> None:
        """Assert that every answer about these messages is that of the naive reading."""
        requests, expected = [], []
        for number in numbers:
            requests += [b"%d\n" % number, b"-%d\n" % (truth.count - number)]
            expected += [truth.offsets[number]] * 2
        self.sock.sendall(b"".join(requests))
        assert [self.next() for _ in requests] == list(map(str, expected))
        for number in numbers[:50]:
            length = len(truth.messages[number]) if number < truth.count else None
            place = {
                "number": number,
                "offset": truth.offsets[number],
                "length": length,
                "count": truth.count,
                "end": truth.end,
            }
            inside = truth.offsets[number] + (length - 1 if length else 0)
            for query in ({"number": number}, {"last": truth.count - number}, {"offset": inside}):
                reply = self.ask(**query)
                assert {key: reply[key] for key in place} == place, query

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
