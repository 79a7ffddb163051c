"""Promises of the byte-level client's pure parts: one stream, whatever connections do."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_client.errors import StreamDiverged
from tailsrv_client.protocol.reader import Reader
from tailsrv_client.protocol.servers import Rotation, parse_addresses
from tailsrv_client.protocol.stream_end import PROBE_BYTES, search_end
from tailsrv_formats.errors import UsageError
from tailsrv_formats.position import CHECKED_BYTES, Position, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


def answer(stream: bytes, header: bytes) -> bytes:
    """What a broadcaster of `stream` sends."""
    words = header.split()
    start = int(words[0])
    return stream[start:] if len(words) == 1 else stream[start : start + int(words[1])]


@given(st.binary(min_size=1, max_size=600), st.integers(0), st.booleans())
def test_cut_anywhere_it_hands_out_the_stream_once(stream: bytes, seed: int, stops: bool) -> None:
    rng = random.Random(seed)
    start = rng.randint(0, len(stream))
    end = rng.randint(start, len(stream)) if stops else len(stream)
    reader = Reader(Position(start), end if stops else None)
    received = b""
    while start + len(received) < end:
        sent = answer(stream, reader.header())
        sent = sent[: rng.randint(0, len(sent))]  # the connection breaks there
        while sent:
            size = rng.randint(1, len(sent))
            received += reader.received(sent[:size])
            sent = sent[size:]
    assert received == stream[start:end]
    assert reader.position == Position(end, digest(stream[:end]) if received or not end else "")
    assert reader.done == stops


@given(st.binary(min_size=1, max_size=300), st.integers(0, 299), st.integers(0, CHECKED_BYTES - 1))
def test_a_position_is_refused_by_any_stream_that_differs_in_the_bytes_before_it(
    stream: bytes, offset: int, back: int
) -> None:
    offset = min(offset, len(stream))
    if offset == 0:
        return
    back = min(back, offset - 1)
    other = bytearray(stream)
    other[offset - 1 - back] ^= 1
    reader = Reader(Position(offset, digest(stream[:offset])))
    with pytest.raises(StreamDiverged, match=f"byte {offset}"):
        reader.received(answer(bytes(other), reader.header()))


def test_a_difference_is_found_at_once_where_the_bytes_themselves_are_known() -> None:
    reader = Reader(Position(0))
    reader.header()
    reader.received(b"a" * 100)
    reader.header()
    with pytest.raises(StreamDiverged):
        reader.received(b"ab")


def test_it_asks_for_the_64_bytes_before_and_for_no_more_than_it_wants() -> None:
    assert Reader(Position(1000), 1010).header() == b"936 74\n"
    assert Reader(Position(10)).header() == b"0\n"
    assert Reader(Position(0), 5).header() == b"0 5\n"


def test_bytes_behind_a_stop_that_became_known_late_are_not_handed_out() -> None:
    reader = Reader(Position(0))
    reader.header()
    assert reader.received(b"0123") == b"0123"
    reader.stop = 6
    assert reader.received(b"456789") == b"45"
    assert reader.done


def test_what_is_owed_is_known_only_where_something_was_read() -> None:
    fresh = Reader(Position(100))
    fresh.header()
    assert not fresh.checking, "bytes before a place that a user named may be a long way off"
    resumed = Reader(Position(100, digest(b"x" * 64)))
    resumed.header()
    assert resumed.checking


def test_every_address_is_tried_before_it_waits_and_waits_grow_with_jitter() -> None:
    addresses = parse_addresses("a:1,b:2,c:3")
    rotation = Rotation(addresses, first=1.0, longest=5.0, rng=lambda: 1.0)
    waits = []
    tried = []
    for _ in range(12):
        tried.append(str(rotation.address))
        waits.append(rotation.failed())
    assert tried == ["a:1", "b:2", "c:3"] * 4
    assert waits == [0, 0, 1, 0, 0, 2, 0, 0, 4, 0, 0, 5]
    low = Rotation(addresses[:1], first=1.0, longest=5.0, rng=lambda: 0.0)
    assert [low.failed() for _ in range(4)] == [0.5, 1, 2, 2.5]


def test_what_has_worked_is_tried_again_soon() -> None:
    rotation = Rotation(parse_addresses("a:1"), first=1.0, rng=lambda: 1.0)
    for _ in range(10):
        rotation.failed()
    rotation.worked()
    assert rotation.failed() == 1.0


def test_no_address_is_a_usage_error() -> None:
    for bad in ("", "host", "host:99999", "a:1,", ":x"):
        with pytest.raises(UsageError):
            parse_addresses(bad)


def found_by(search: Generator[tuple[int, int], int, int], answer: Callable[[int], int]) -> int:
    """Let a search ask until it knows; 100 questions at most."""
    probe, most = next(search)
    for _ in range(100):
        try:
            probe, most = search.send(min(answer(probe), most))
        except StopIteration as found:
            return int(found.value)
    raise AssertionError("no end found")


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
def test_the_end_of_a_stream_is_found_in_few_questions_without_reading_it(end: int, known: int) -> None:
    read = 0

    def answer(probe: int) -> int:
        nonlocal read
        came = max(0, end - probe)
        read += min(came, PROBE_BYTES)
        return came

    assert found_by(search_end(min(known, end)), answer) == end
    assert read < 100 * PROBE_BYTES


@given(st.integers(0, 1 << 40), st.integers(0), st.integers(0, 30))
def test_the_end_of_a_growing_stream_is_one_that_it_had_while_it_was_searched(first: int, seed: int, bits: int) -> None:
    """However fast it grows: a gigabyte a question, at most."""
    rng, ends = random.Random(seed), [first]

    def answer(probe: int) -> int:
        came = max(0, ends[-1] - probe)
        ends.append(ends[-1] + rng.randint(0, 1 << bits))
        return came

    assert found_by(search_end(), answer) in ends


@given(st.integers(0, 1 << 40), st.integers(0, 20))
def test_an_answer_that_a_stopping_server_cuts_short_does_not_shorten_the_stream(end: int, cut: int) -> None:
    """Unless it is the last one: that one may lose what it would have added to the one before."""
    turn = -1

    def answer(probe: int) -> int:
        nonlocal turn
        turn += 1
        came = max(0, end - probe)
        return came // 2 if turn == cut else came

    found = found_by(search_end(), answer)
    assert found == end or turn == cut
