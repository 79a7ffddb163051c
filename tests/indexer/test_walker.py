"""Numbering messages and choosing which get an entry, against a naive reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.segments import Joiner, walk_prefixed, walk_terminated
from indexer.walker import PREFIX_MAX_BYTES, RewrittenError, Walker
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.index_file import CONTEXT_BYTES
from tests.support.naive_index import Truth, framings, payload_lists

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

SEED = 4711
LIMIT = 1 << 20
LEAST_PIECE = CONTEXT_BYTES + PREFIX_MAX_BYTES + 1


def grow(walker: Walker, content: bytes, ends: Iterable[int], piece: int = 1 << 20) -> list[int]:
    """Let the stream grow to each of `ends`; all raw entries."""
    raw: list[int] = []
    for end in ends:
        while walker.wanted <= end and walker.framing_error is None:
            raw += walker.feed(content[walker.position : min(end, walker.position + piece)])
    return raw


@given(framings(), payload_lists(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_however_the_stream_grows_the_entries_are_those_of_the_naive_reading(
    name: str, payloads: list[bytes], interval: int, rng: random.Random
) -> None:
    truth = Truth(name, payloads)
    walker = Walker(make_framing(name, LIMIT), interval, SEED)
    cuts = [*sorted(rng.choices(range(truth.end + 1), k=10)), truth.end]
    raw = grow(walker, truth.content, cuts, rng.choice((LEAST_PIECE, 100, 1 << 20)))
    assert raw == truth.entries(interval, SEED)
    assert (walker.number, walker.boundary) == (truth.count, truth.end)


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_stream_that_comes_byte_by_byte_is_numbered_alike(name: str) -> None:
    truth = Truth(name, [b"", b"a" * 5, b"", b"b" * 300, b"c" * 60, b"d" * 129] * 3)
    walker = Walker(make_framing(name, LIMIT), 64, SEED)
    assert grow(walker, truth.content, range(truth.end + 1)) == truth.entries(64, SEED)


@given(framings(), payload_lists(), st.integers(1, 200), st.data())
def test_a_walk_goes_on_from_any_boundary(name: str, payloads: list[bytes], interval: int, data: st.DataObject) -> None:
    truth = Truth(name, payloads)
    number = data.draw(st.integers(0, truth.count))
    whole = truth.entries(interval, SEED)
    # Entries are made where a interval's first boundary is; whoever goes on starts at an entry.
    starts = [(0, 0), *zip(whole[0::3], whole[1::3], strict=True)]
    number, offset = max(start for start in starts if start[0] <= number)
    walker = Walker(make_framing(name, LIMIT), interval, SEED, offset, number)
    expected = [value for at in range(0, len(whole), 3) if whole[at] > number for value in whole[at : at + 3]]
    assert grow(walker, truth.content, [truth.end]) == expected


@given(framings(), payload_lists(), st.integers(1, 100), st.integers(1, 400), st.data())
def test_segments_joined_are_one_walk(
    name: str, payloads: list[bytes], interval: int, size: int, data: st.DataObject
) -> None:
    truth = Truth(name, payloads)
    workers = data.draw(st.integers(1, 4))
    framing = make_framing(name, LIMIT)
    tail = data.draw(st.sampled_from((b"", framing.wrap(b"a" * 200)[:-1])))
    content = truth.content + tail
    segments = [(at, min(at + size, len(content))) for at in range(0, len(content), size)]

    def read(offset: int, count: int) -> bytes:
        return content[offset : offset + count]

    joiner = Joiner(framing, interval, 0, 0)
    if framing.terminator:
        found = [
            list(walk_terminated(read, framing, interval, SEED, iter(segments[worker::workers])))
            for worker in range(workers)
        ]
        in_turn = [found[turn % workers][turn // workers] for turn in range(len(segments))]
    else:
        in_turn = list(walk_prefixed(read, framing, interval, SEED, iter(segments)))
    raw: list[int] = []
    for each in in_turn:
        joined = joiner.join(each)
        assert joined is not None
        raw += joined
    assert raw == truth.entries(interval, SEED)
    assert (joiner.number, joiner.boundary) == (truth.count, truth.end)


@pytest.mark.parametrize("name", FRAMINGS)
def test_what_cannot_be_a_message_ends_the_walk_at_its_first_byte(name: str) -> None:
    truth = Truth(name, [b"a" * 20] * 10)
    walker = Walker(make_framing(name, 50), 64, SEED)
    nonsense = b"\xff" * 51
    grow(walker, truth.content + nonsense, range(0, truth.end + 52, 7))
    grow(walker, truth.content + nonsense, [truth.end + 51])
    assert (walker.number, walker.boundary) == (truth.count, truth.end)
    assert walker.framing_error is not None


def test_joined_segments_end_where_a_message_is_too_long() -> None:
    framing = make_framing("newline", 50)
    content = b"a\n" * 10 + b"b" * 60 + b"\n" + b"c\n" * 10

    def read(offset: int, count: int) -> bytes:
        return content[offset : offset + count]

    joiner = Joiner(framing, 8, 0, 0)
    segments = [(at, min(at + 16, len(content))) for at in range(0, len(content), 16)]
    for found in walk_terminated(read, framing, 8, SEED, iter(segments)):
        if joiner.join(found) is None:
            break
    else:
        pytest.fail("nobody minded")
    assert (joiner.number, joiner.boundary) == (10, 20)


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_tail_is_never_read_again_from_its_beginning(name: str) -> None:
    """A message of a megabyte that comes in small pieces costs what it weighs, not its square."""
    message = make_framing(name, 1 << 20).wrap(b"x" * 65000)
    walker = Walker(make_framing(name, 1 << 20), 4096, SEED)
    read = 0
    for end in range(100, len(message) + 1, 100):
        while walker.wanted <= end:
            data = message[walker.position : end]
            read += len(data)
            walker.feed(data)
    assert read < 2 * len(message)


def test_bytes_that_changed_after_they_were_read_show() -> None:
    walker = Walker(make_framing("newline"), 64, SEED)
    grow(walker, b"one\ntwo\nthr", [11])
    content = b"one\ntwo\nTHREE\n"
    with pytest.raises(RewrittenError):
        walker.feed(content[walker.position :])
