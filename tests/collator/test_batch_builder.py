"""Gathering copies little, holds what it says, and keeps everybody's bytes whole."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest

from collator.batch_builder import CHUNK_BYTES, SMALL_BYTES, Batch, BatchBuilder, Inbox
from tailsrv_formats.framing import FRAMINGS, FramingError, make_framing
from tests.fuzz.fuzz_framing import deliver

BUDGET = 64 << 20


def content(batch: Batch) -> bytes:
    return b"".join(batch.pieces)


def feed(builder: BatchBuilder, inbox: Inbox, data: bytes, cut: int = 1 << 30) -> None:
    assert deliver(builder, inbox, data, itertools.cycle((cut,))) is None


@pytest.mark.parametrize("name", FRAMINGS)
def test_messages_of_interleaved_producers_are_whole_and_in_their_order(name: str) -> None:
    source = random.Random(name)
    framing = make_framing(name, 1 << 20)
    numbers = itertools.count()
    messages = {
        who: [
            framing.wrap(b"%d:%d:" % (who, next(numbers)) + b"x" * source.choice((0, 9, 300, 40_000)))
            for _ in range(40)
        ]
        for who in range(5)
    }
    builder = BatchBuilder(framing, BUDGET)
    inboxes = [Inbox() for _ in messages]
    waiting = {who: b"".join(sent) for who, sent in messages.items()}
    stream = b""
    while any(waiting.values()):
        who = source.choice([who for who, rest in waiting.items() if rest])
        count = source.choice((1, 10, 1000, 100_000))
        feed(builder, inboxes[who], waiting[who][:count])
        waiting[who] = waiting[who][count:]
        if source.random() < 0.05:
            batch = builder.take()
            stream += content(batch)
            builder.release(batch)
    batch = builder.take()
    stream += content(batch)
    assert framing.walk(stream, 0, len(stream)) == (len(stream), 200)
    payloads = framing.payloads(stream, 0, len(stream))
    for who, sent in messages.items():
        mine = [framing.wrap(payload) for payload in payloads if payload.startswith(b"%d:" % who)]
        assert mine == sent


def test_what_many_small_producers_deliver_is_one_slice() -> None:
    builder = BatchBuilder(make_framing("newline"), BUDGET)
    inboxes = [Inbox() for _ in range(100)]
    for inbox in inboxes:
        feed(builder, inbox, b"first\nsec")
    for inbox in inboxes:
        feed(builder, inbox, b"ond\nthi")
    batch = builder.take()
    assert len(batch.pieces) == 1
    assert content(batch) == b"first\n" * 100 + b"second\n" * 100
    assert batch.messages == 200


def test_a_large_message_is_searched_only_where_it_is_new() -> None:
    framing = make_framing("newline", 1 << 21)
    searched = 0
    walk = framing.walk

    def count_walk(data: bytes, start: int, stop: int) -> tuple[int, int]:
        nonlocal searched
        searched += stop - start
        return walk(data, start, stop)

    framing.walk = count_walk  # type: ignore[assignment, method-assign]  # a hook that counts
    builder, inbox = BatchBuilder(framing, BUDGET), Inbox()
    message = b"x" * ((1 << 20) - 1) + b"\n"
    feed(builder, inbox, message, 1024)
    # Up to the size at which it is kept apart it is searched again; from there on not at all.
    assert searched <= SMALL_BYTES * (SMALL_BYTES // 1024 + 2)
    assert content(builder.take()) == message


def test_a_claimed_length_is_not_allocated() -> None:
    builder, inbox = BatchBuilder(make_framing("u32be", 1 << 30), BUDGET), Inbox()
    feed(builder, inbox, (1 << 29).to_bytes(4, "big") + b"x" * 100)
    assert builder.held <= CHUNK_BYTES + 104


def test_what_came_before_an_impossible_message_is_in_the_batch() -> None:
    builder, inbox = BatchBuilder(make_framing("u32be", 100), BUDGET), Inbox()
    space = builder.space(inbox)
    assert space is not None
    data = b"\0\0\0\1a" + b"\xff\xff\xff\xff" + b"rest"
    space[: len(data)] = data
    with pytest.raises(FramingError, match="--max-message-bytes"):
        builder.received(inbox, len(data))
    assert content(builder.take()) == b"\0\0\0\1a"


def test_nothing_is_gathered_beyond_the_budget_until_a_commit_makes_room() -> None:
    budget = 1 << 20
    builder = BatchBuilder(make_framing("newline"), budget)
    inboxes = [Inbox() for _ in range(1000)]
    line = b"x" * 1999 + b"\n"
    taken: list[Batch] = []
    for inbox in itertools.cycle(inboxes):
        space = builder.space(inbox)
        if space is None:
            break
        space[: len(line)] = line
        builder.received(inbox, len(line))
        assert builder.held <= budget
        if builder.batch.size > budget // 5:
            taken.append(builder.take())
    assert sum(batch.size for batch in taken) >= budget // 2
    for batch in taken:
        builder.release(batch)
    assert builder.space(Inbox()) is not None


def test_incomplete_messages_count_and_are_forgotten_when_dropped() -> None:
    budget = 1 << 20
    builder = BatchBuilder(make_framing("newline"), budget)
    inboxes = []
    while True:
        inbox = Inbox()
        space = builder.space(inbox)
        if space is None:
            break
        space[:5000] = b"y" * 5000
        builder.received(inbox, 5000)
        inboxes.append(inbox)
    assert 100 <= len(inboxes) <= budget // 5000
    assert sum(builder.drop(inbox) for inbox in inboxes) == 5000 * len(inboxes)
    assert builder.space(Inbox()) is not None


def test_a_clean_end_completes_a_line_and_no_length_prefixed_message() -> None:
    for name, ending in (("newline", b"\n"), ("nul", b"\0"), ("u32be", b"")):
        builder, inbox = BatchBuilder(make_framing(name), BUDGET), Inbox()
        feed(builder, inbox, b"\0\0\0\3" if name == "u32be" else b"last")
        assert builder.finish(inbox) == (5 if ending else 0)
        assert content(builder.take()) == (b"last" + ending if ending else b"")


def test_a_line_that_would_be_too_long_with_its_newline_is_not_completed() -> None:
    builder, inbox = BatchBuilder(make_framing("newline", 5), BUDGET), Inbox()
    feed(builder, inbox, b"1234")
    assert builder.finish(inbox) == 5
    space = builder.space(inbox)
    assert space is not None
    space[:5] = b"12345"
    with pytest.raises(FramingError):
        builder.received(inbox, 5)
    assert builder.finish(inbox) == 0


def test_completing_a_last_message_takes_no_memory_for_its_bytes() -> None:
    """There may be none: the producer has ended, and would have nobody to send it again."""
    builder = BatchBuilder(make_framing("newline", 8 << 20), BUDGET)
    inbox = Inbox()
    feed(builder, inbox, b"x" * (4 << 20))
    tracemalloc.start()
    try:
        assert builder.finish(inbox) == (4 << 20) + 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert content(builder.take()) == b"x" * (4 << 20) + b"\n"
