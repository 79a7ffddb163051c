"""What the indexer's tests share: the naive reading that every answer is compared with, and a client."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, Self

from hypothesis import strategies as st

from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.index_file import CONTEXT_BYTES, fingerprint
from tests.support.daemons import Daemon, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Truth:
    """A stream, read naively: every message's offset in a list."""

    def __init__(self, framing: str, payloads: Sequence[bytes]) -> None:
        wrap = make_framing(framing, 1 << 30).wrap
        self.framing = framing
        self.messages = [wrap(payload) for payload in payloads]
        self.content = b"".join(self.messages)
        self.offsets = [0]
        for message in self.messages:
            self.offsets.append(self.offsets[-1] + len(message))
        self.count = len(self.messages)
        self.end = len(self.content)

    def entries(self, interval: int, seed: int) -> list[int]:
        """The raw entries that its index has to hold: the first boundary in each interval, but for offset 0."""
        raw: list[int] = []
        current = 0
        for number, offset in enumerate(self.offsets):
            if offset // interval > current:
                current = offset // interval
                raw += (number, offset, fingerprint(self.content[max(0, offset - CONTEXT_BYTES) : offset], seed))
        return raw

    def holder(self, byte: int) -> int:
        """The number of the message that holds this byte."""
        return next(number for number, offset in enumerate(self.offsets) if offset > byte) - 1


def framings() -> st.SearchStrategy[str]:
    return st.sampled_from(FRAMINGS)


def payload_lists() -> st.SearchStrategy[list[bytes]]:
    """Messages of every length that matters where an interval has some dozen bytes: empty, short, many intervals."""
    sizes = st.one_of(st.just(0), st.integers(0, 12), st.integers(50, 70), st.sampled_from((127, 128, 129, 300, 1000)))
    return st.lists(sizes.map(lambda size: random.Random(size).randbytes(size).translate(_PLAIN)), max_size=60)


_PLAIN = bytes(range(65, 91)) * 9 + bytes(range(65, 87))
"""A translation to letters, so that no payload holds a terminator."""


def lines(count: int, begin: int = 0, width: int = 20) -> list[bytes]:
    """Payloads that say which they are."""
    return [b"%0*d" % (width + number % 7, number) for number in range(begin, begin + count)]


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

    def check(self, truth: Truth, numbers: Sequence[int]) -> None:
        """Every answer about these messages is the naive reading's."""
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
