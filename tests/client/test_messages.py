"""Promises of what turns bytes into messages, and of a consumer's place in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_client.protocol.consumption import Consumption
from tailsrv_client.protocol.messages import Message, MessageDecoder
from tailsrv_client.protocol.plan import Plan
from tailsrv_formats.framing import FRAMINGS, FramingError, make_framing
from tailsrv_formats.position import Position, digest

PAYLOADS = st.lists(st.binary(max_size=200).map(lambda b: b.replace(b"\n", b"").replace(b"\0", b"")), max_size=30)


def pieces(data: st.DataObject, stream: bytes) -> list[bytes]:
    """`stream` cut anywhere."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


@pytest.mark.parametrize("name", FRAMINGS)
@given(payloads=PAYLOADS, data=st.data())
def test_however_a_stream_is_cut_its_messages_come_once_with_their_places(
    name: str, payloads: list[bytes], data: st.DataObject
) -> None:
    framing = make_framing(name)
    offset = 1000
    expected = []
    for payload in payloads:
        end = offset + len(framing.wrap(payload))
        expected.append(Message(payload, offset, end))
        offset = end
    stream = b"".join(map(framing.wrap, payloads))
    before = b"b" * 64
    inbox = MessageDecoder(framing, 1000, before)
    found = []
    for piece in pieces(data, stream):
        for message in inbox.feed(piece):
            found.append(message)
            assert inbox.tail(message.end) == (before + stream[: message.end - 1000])[-64:]
    assert found == expected
    assert inbox.broken is None


def test_padded_varints_have_the_places_that_they_have() -> None:
    stream = b"\x01a" + b"\x81\x00b" + b"\x01c"
    assert MessageDecoder(make_framing("varint"), 0).feed(stream) == [
        Message(b"a", 0, 2),
        Message(b"b", 2, 5),
        Message(b"c", 5, 7),
    ]


@pytest.mark.parametrize("name", ["newline", "u32be"])
def test_a_message_beyond_the_limit_is_told_with_its_byte_after_those_before_it(name: str) -> None:
    small, big = make_framing(name, 100), make_framing(name)
    inbox = MessageDecoder(small, 50)
    fine, bad = small.wrap(b"x" * 10), big.wrap(b"y" * 200)
    assert [message.payload for message in inbox.feed(fine + bad)] == [b"x" * 10]
    assert isinstance(inbox.broken, FramingError)
    assert f"at byte {50 + len(fine)}" in str(inbox.broken)


def test_a_long_message_costs_no_search_of_all_that_came_before() -> None:
    """16 MiB in 4 KiB pieces: quadratic work would take minutes."""
    inbox = MessageDecoder(make_framing("newline", 64 << 20), 0)
    for _ in range(4096):
        assert inbox.feed(b"x" * 4096) == []
    (message,) = inbox.feed(b"\n")
    assert message.end == 16 * 2**20 + 1


def consuming(stream: bytes, **plan: int) -> Consumption:
    core = Consumption(Plan(Position(0), 0, **plan), make_framing("newline"))
    core.reader.header()
    core.feed(core.reader.received(stream))
    return core


def test_a_checkpoint_says_what_was_taken_and_a_position_what_was_handed_out() -> None:
    core = consuming(b"one\ntwo\nthree\nfo")
    handed = [next(core.undelivered), next(core.undelivered)]
    core.delivered, core.acked = handed[1].end, handed[0].end
    assert core.position(core.delivered) == Position(8, digest(b"one\ntwo\n"))
    assert core.number == 2
    saved = core.checkpoint()
    assert (saved.position, saved.number) == (Position(4, digest(b"one\n")), 1)


def test_a_count_ends_it_within_a_batch() -> None:
    core = consuming(b"one\ntwo\nthree\n", count=2)
    assert [message.payload for message in core.undelivered] == [b"one", b"two"]
    assert core.done
