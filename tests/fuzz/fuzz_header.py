"""Fuzz target: the broadcaster's header parser.

Invariant: whatever the bytes, `parse` returns `WHERE`, a request within its limits, or None for fewer than 64 bytes
without a newline and without an end, or raises `HeaderError`; never anything else. What it says of the first 64 bytes
it also says when they come one by one, and whatever follows them.

    python -m tests.fuzz.fuzz_header [atheris' options]
"""

from __future__ import annotations

from tailsrv_formats.header import HEADER_BYTES, NEVER, OFFSET_LIMIT, HeaderError, Request, Where, parse
from tests.fuzz.campaign import run

ALPHABET = b"0123456789+- endowhr\t\r\n"


def judge(received: bytes, *, ended: bool) -> Request | Where | str | None:
    """What the parser says; errors by name, so that answers can be compared."""
    try:
        return parse(received, ended=ended)
    except HeaderError:
        return "error"


def assert_input(data: bytes) -> None:
    """Check the invariant."""
    for ended in (False, True):
        verdict = judge(data, ended=ended)
        if verdict is None:
            assert not ended
            assert len(data) < HEADER_BYTES
            assert b"\n" not in data
        elif isinstance(verdict, Request):
            assert 0 <= verdict.start <= OFFSET_LIMIT
            assert verdict.count is None or 0 <= verdict.count < OFFSET_LIMIT
            start, stop = verdict.range(1000)
            assert start >= 0
            assert stop == NEVER or stop >= start or verdict.until_now
    first = None
    for length in range(1, len(data) + 1):
        first = judge(data[:length], ended=False)
        if first is not None:
            break
    assert first == judge(data, ended=False)


def shaped(data: bytes) -> bytes:
    """The same entropy spent on bytes that headers are made of."""
    return bytes(ALPHABET[byte % len(ALPHABET)] for byte in data)


if __name__ == "__main__":
    run(assert_input, lambda data: assert_input(shaped(data)))
