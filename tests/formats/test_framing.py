"""A framing finds the messages that the plainest splitter finds, however the bytes are cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailsrv_formats.framing import FRAMINGS, FramingError, make_framing
from tests.fuzz import fuzz_framing
from tests.fuzz.fuzz_framing import assert_framed, naive

GOLDEN = {
    "newline": (b"a\n\nbc\n", [2, 3, 6]),
    "nul": (b"a\0\0b\nc\0", [2, 3, 7]),
    "u16be": (b"\0\1a\0\0\0\2bc", [3, 5, 9]),
    "u32be": (b"\0\0\0\1a\0\0\0\0\0\0\0\2bc", [5, 9, 15]),
    "u32le": (b"\1\0\0\0a\0\0\0\0\2\0\0\0bc", [5, 9, 15]),
    "varint": (b"\1a\0\x82\0bc", [2, 3, 7]),
}


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, bytes]:
    """A framing, and a stream of its messages with anything, or nothing, behind it."""
    name = draw(st.sampled_from(FRAMINGS))
    framing = make_framing(name, 1 << 16)
    payloads = draw(st.lists(st.binary(max_size=300).map(lambda data: data * draw(st.sampled_from((1, 1, 1, 40))))))
    if framing.terminator:
        payloads = [payload.replace(framing.terminator, b"x") for payload in payloads]
    return name, b"".join(map(framing.wrap, payloads)) + draw(st.binary(max_size=30))


@pytest.mark.parametrize("name", FRAMINGS)
def test_golden_bytes(name: str) -> None:
    data, ends = GOLDEN[name]
    assert naive(name, data, 100) == (ends, "clean")
    framing = make_framing(name, 100)
    for length in range(len(data) + 1):
        whole = [end for end in ends if end <= length]
        assert framing.walk(data, 0, length) == (max(whole, default=0), len(whole))
    assert b"".join(map(framing.wrap, framing.payloads(data, 0, len(data)))) in {data, b"\1a\0\2bc"}


@given(
    streams(),
    st.sampled_from((1 << 16, 5000, 200, 7)),
    st.lists(st.integers(1, 4000), min_size=1, max_size=5).map(tuple),
)
@example(("newline", b"x" * 9000 + b"\ny\n"), 1 << 16, (1000,))
@example(("u32be", b"\0\0\x20\0" + b"x" * 8192 + b"\0\0\0\1y"), 1 << 16, (1, 4000))
def test_whole_byte_by_byte_and_in_arbitrary_cuts(stream: tuple[str, bytes], limit: int, cuts: tuple[int, ...]) -> None:
    name, data = stream
    for pieces in ((1 << 20,), (1,) if len(data) < 2000 else (97,), cuts):
        assert_framed(name, data, limit, pieces)


@given(streams(), st.integers(0, 2000), st.integers(0, 20))
def test_a_walk_stops_at_the_first_boundary_it_is_asked_for(stream: tuple[str, bytes], until: int, most: int) -> None:
    name, data = stream
    framing = make_framing(name, 1 << 16)
    ends, _ = naive(name, data, 1 << 16)
    bounds = [0, *ends]
    reached = next((count for count, bound in enumerate(bounds) if bound >= until), len(ends))
    assert framing.walk(data, 0, len(data), until=until) == (bounds[reached], reached)
    few = min(most, len(ends))
    assert framing.walk(data, 0, len(data), most=most) == (bounds[few], few)


@given(streams())
def test_junk_after_a_stream_changes_nothing_before_it(stream: tuple[str, bytes]) -> None:
    name, data = stream
    framing = make_framing(name, 1 << 16)
    boundary, count = framing.walk(data, 0, len(data))
    junk = bytes(64) + b"\xff" * 64
    assert framing.walk(data + junk, 0, len(data)) == (boundary, count)


@pytest.mark.parametrize("name", FRAMINGS)
def test_the_limit_counts_terminator_and_prefix(name: str) -> None:
    generous = make_framing(name, 1 << 16)
    message = generous.wrap(b"x" * 99)
    exact, tight = make_framing(name, len(message)), make_framing(name, len(message) - 1)
    assert exact.wrap(b"x" * 99) == message
    assert exact.walk(message, 0, len(message)) == (len(message), 1)
    assert tight.walk(message, 0, len(message)) == (0, 0)
    with pytest.raises(FramingError, match=r"--max-message-bytes|carries"):
        tight.wrap(b"x" * 99)
    with pytest.raises(FramingError, match="--max-message-bytes"):
        tight.missing(message, 0, len(message))


@pytest.mark.parametrize("name", ["newline", "nul"])
def test_a_payload_that_holds_the_terminator_is_refused(name: str) -> None:
    framing = make_framing(name)
    with pytest.raises(FramingError, match="length prefix"):
        framing.wrap(b"a" + framing.terminator)


def test_an_unknown_framing_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="newline, nul"):
        make_framing("lines")


def test_the_fuzz_target_finds_nothing_in_random_streams() -> None:
    source = random.Random()
    for _ in range(2000):
        data = source.randbytes(source.randrange(400))
        fuzz_framing.assert_input(data)
        few = bytes(byte % 5 for byte in data[4:])
        fuzz_framing.assert_input(data[:4] + few)
