"""Fuzz target: the framings, and the builder that relies on them.

Invariant: whatever the bytes and however they are cut, a framing and a builder find the messages that the plainest
possible splitter finds, byte by byte; they refuse where it refuses, and nothing of a refused message is appended.

    python -m tests.fuzz.fuzz_framing [atheris' options]
"""

from __future__ import annotations

import itertools
from typing import Final

from collator.batch_builder import BatchBuilder, Inbox
from tailsrv_formats.framing import FRAMINGS, FramingError, make_framing
from tests.fuzz.campaign import run

INCOMPLETE, IMPOSSIBLE, CLEAN = "incomplete", "impossible", "clean"
BUFFER_BYTES: Final = 1 << 16


def naive(name: str, data: bytes, limit: int) -> tuple[list[int], str]:
    """Where each message ends, and what stands behind the last one. Looks at one byte at a time."""
    ends: list[int] = []
    start = 0
    while start < len(data):
        end = _next_end(name, data, start, limit)
        if end is None or end > len(data):
            return ends, INCOMPLETE
        if end < 0:
            return ends, IMPOSSIBLE
        ends.append(end)
        start = end
    return ends, CLEAN


def _next_end(name: str, data: bytes, start: int, limit: int) -> int | None:
    """Where the message at `start` ends, perhaps behind the data; None: not known yet; -1: it can't be one."""
    if name in {"newline", "nul"}:
        return _next_terminator(10 if name == "newline" else 0, data, start, limit)
    begin, length = _prefix(name, data, start)
    if begin <= 0:
        return begin or None
    return -1 if begin + length > limit else start + begin + length


def _next_terminator(terminator: int, data: bytes, start: int, limit: int) -> int | None:
    for position in range(start, min(len(data), start + limit)):
        if data[position] == terminator:
            return position + 1
    return -1 if len(data) - start >= limit else None


def _prefix(name: str, data: bytes, start: int) -> tuple[int, int]:
    """The width of a length prefix and the length; width 0: there is more to come; -1: it is none."""
    length = begin = 0
    if name == "varint":
        for begin in range(1, 11):
            if start + begin > len(data):
                return 0, 0
            length += (data[start + begin - 1] % 128) * 128 ** (begin - 1)
            if data[start + begin - 1] < 128:
                break
        else:
            return -1, 0
        return (begin, length) if length < 2**64 else (-1, 0)
    begin = 2 if name == "u16be" else 4
    if start + begin > len(data):
        return 0, 0
    return begin, int.from_bytes(data[start : start + begin], "little" if name.endswith("le") else "big")


def deliver(builder: BatchBuilder, inbox: Inbox, data: bytes, cuts: itertools.cycle[int]) -> str | None:
    """Feed a builder as a socket would; `IMPOSSIBLE` when it refuses."""
    position = 0
    while position < len(data):
        space = builder.space(inbox)
        assert space is not None, "there is room for so little"
        count = min(len(space), next(cuts), len(data) - position)
        space[:count] = data[position : position + count]
        position += count
        try:
            builder.received(inbox, count)
        except FramingError:
            return IMPOSSIBLE
    return None


def assert_framed(name: str, data: bytes, limit: int, cuts: tuple[int, ...]) -> None:
    """Check the invariant for one framing."""
    ends, behind = naive(name, data, limit)
    last = ends[-1] if ends else 0
    framing = make_framing(name, limit)
    assert framing.walk(data, 0, len(data)) == (last, len(ends))
    assert framing.reach(data, 0, len(data)) == last
    try:
        missing = framing.missing(data, last, len(data)) if behind != CLEAN else 0
    except FramingError:
        assert behind == IMPOSSIBLE
    else:
        assert behind != IMPOSSIBLE
        assert missing >= (behind == INCOMPLETE)

    builder, inbox = BatchBuilder(framing, BUFFER_BYTES), Inbox()
    refused = deliver(builder, inbox, data, itertools.cycle(cuts))
    assert refused == (IMPOSSIBLE if behind == IMPOSSIBLE else None)
    messages = builder.batch.messages
    batch = builder.take()
    assert b"".join(batch.pieces) == data[:last]
    assert (batch.size, messages) == (last, len(ends))
    if refused is None:
        assert inbox.partial == data[last:]
    builder.drop(inbox)
    builder.release(batch)
    assert builder.held == 0


def assert_input(data: bytes) -> None:
    """Spend the first bytes on the framing, the limit and the cuts, the others on the stream."""
    if len(data) < 4:
        return
    name = FRAMINGS[data[0] % len(FRAMINGS)]
    limit = 1 + data[1] * (1 if data[0] < 128 else 40)
    assert_framed(name, data[4:], limit, (1 + data[2], 1 + data[3] * 16))


if __name__ == "__main__":
    run(assert_input)
