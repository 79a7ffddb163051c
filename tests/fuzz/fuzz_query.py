"""Fuzz target: the indexer's request parser.

Invariant: whatever the line, `parse` returns a query of one of the five kinds with a whole number, never negative but
for times, or says what is wrong with it; and both the error and an answer are one line of ASCII. Never anything else.

    python -m tests.fuzz.fuzz_query [atheris' options]
"""

from __future__ import annotations

import json

from tailsrv_formats.index_query import KINDS, Malformed, parse, render_error
from tests.fuzz.campaign import run

WORDS = (
    *(b"0", b"7", b"10", b"-", b"+", b".", b"e", b"_", b" ", b"{", b"}", b":", b",", b'"', b"\\u0000", b"\xff"),
    *(b'"number"', b'"last"', b'"offset"', b'"time"', b'"count"', b"true", b"false", b"null"),
    *(b'{"time":"', b"2026-11-23T", b"09:00:00", b"Z", b"+23:59", b'{"number":', b"9999999999999999999", b"1e308"),
)


def assert_input(line: bytes) -> None:
    """Check the invariant."""
    line = line.replace(b"\n", b"")
    query = parse(line)
    if isinstance(query, Malformed):
        assert query.is_json == line.startswith(b"{")
        reply = render_error(query.reason, query.is_json)
        assert reply.isascii()
        assert reply.index(b"\n") == len(reply) - 1
        if query.is_json:
            assert set(json.loads(reply)) == {"error"}
        else:
            assert reply.startswith(b"error: ")
        return
    assert query.kind in KINDS
    assert type(query.value) is int
    assert query.value >= 0 or query.kind == "time"
    if not query.is_json:
        assert line.lstrip(b"-").isdigit()
        assert query.value == int(line.lstrip(b"-"))


def shaped(data: bytes) -> bytes:
    """The same entropy spent on what requests are made of."""
    return b"".join(WORDS[byte % len(WORDS)] for byte in data[:12])


if __name__ == "__main__":
    run(assert_input, lambda data: assert_input(shaped(data)))
