"""The format of the index file."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from tailsrv_formats.index_file import (
    ENTRY_BYTES,
    HEADER_BYTES,
    Entry,
    Header,
    decode_entry,
    decode_header,
    encode_entries,
    fingerprint,
    holds,
    unpack,
)

HEADER = Header("newline", 4096, 1795424400_000000001, 4096, 0xDEADBEEF)
GOLDEN_HEADER = bytes.fromhex(
    "7461696c69647831"  # tailidx1
    "6e65776c696e6500"  # newline
    "0000000000001000"  # 4096
    "18eaa0faaf11a001"  # 2026-11-23T09:00:00.000000001Z
    "00001000deadbeef" + "00" * 20
)
GOLDEN_ENTRY = bytes.fromhex(
    "0000000003e84d4e"  # message 1000, and the check
    "000000000000c350"  # at byte 50000
    "18eaa0faaf11a001"
)
CONTEXT = b"the thirty-two bytes before it.\n"


def test_the_header_is_these_bytes() -> None:
    assert HEADER.encode() == GOLDEN_HEADER + zlib.crc32(GOLDEN_HEADER).to_bytes(4, "big")
    assert len(HEADER.encode()) == HEADER_BYTES
    assert decode_header(HEADER.encode() + b"entries") == HEADER


def test_an_entry_is_these_bytes() -> None:
    mark = fingerprint(CONTEXT, HEADER.seed())
    packed = encode_entries([1000, 50000, mark], HEADER.created, exact=True)
    assert packed == GOLDEN_ENTRY
    assert decode_entry(unpack(packed)) == Entry(1000, 50000, HEADER.created, exact=True)
    assert holds(unpack(packed), mark)


def test_an_arrival_that_was_not_observed_sets_the_top_bit_of_the_time() -> None:
    packed = encode_entries([1000, 50000, 7], HEADER.created, exact=False)
    assert packed[16] == 0x98
    assert decode_entry(unpack(packed)) == Entry(1000, 50000, HEADER.created, exact=False)
    assert holds(unpack(packed), 7)


@given(st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_flipped_bit_in_the_header_shows(bit: int) -> None:
    assert decode_header(_flip(HEADER.encode(), bit)) is None


@given(st.integers(0, HEADER_BYTES - 1))
def test_a_torn_header_shows(length: int) -> None:
    assert decode_header(HEADER.encode()[:length]) is None


@given(
    st.integers(0, (1 << 48) - 1),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, 65535),
    st.integers(0, 8 * ENTRY_BYTES - 1),
)
def test_any_entry_is_read_as_it_was_written_and_a_flipped_bit_in_it_shows(
    number: int, offset: int, time: int, mark: int, bit: int
) -> None:
    exact = time % 2 == 0
    packed = encode_entries([number, offset, mark], time, exact=exact)
    assert len(packed) == ENTRY_BYTES
    assert decode_entry(unpack(packed)) == Entry(number, offset, time, exact)
    assert holds(unpack(packed), mark)
    assert not holds(unpack(_flip(packed, bit)), mark)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 255))
def test_an_entry_does_not_hold_for_a_stream_with_a_changed_bit_before_it(context: bytes, bit: int) -> None:
    packed = encode_entries([5, 500, fingerprint(context, 1)], 1, exact=True)
    assert not holds(unpack(packed), fingerprint(_flip(context, bit), 1))


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
