"""The journal's bytes are as documented; a torn end, a clean end and damage are three different things."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_formats.journal import (
    BY_NUMBER,
    HEADER,
    Header,
    JournalError,
    Record,
    decode,
    encode_named,
    encode_record,
    producers,
    seed,
)
from tests.fuzz import fuzz_journal

BOOT = b"B" * 16
GOLDEN = (
    b"tsrvjrn1"
    b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"
    b"BBBBBBBBBBBBBBBB"
    b"newline\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    b"\x01\x00\x00\x00"
    b"\x64\x57\xa4\x14"
    # the first record: bytes 2 to 12 of FILE, and ada, who has 10 of them
    b"\x38\x00\x00\x00" + b"\x36\xdf\xe3\x80" + b"\x02\x00\x00\x00\x00\x00\x00\x00"
    b"\x0c\x00\x00\x00\x00\x00\x00\x00"
    b"\x0c\x00\x00\x00\x00\x00\x00\x00"
    b"\xef\xbe\xad\xde\x00\x00\x00\x00\x01\x00\x00\x00"
    b"\x03ada\x0a\x00\x00\x00\x00\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00"
    # a commit: 3 bytes more, all of them ada's, producer number 0
    b"\x38\x00\x00\x00" + b"\xcb\xff\x77\xab" + b"\x0c\x00\x00\x00\x00\x00\x00\x00"
    b"\x0f\x00\x00\x00\x00\x00\x00\x00"
    b"\x0c\x00\x00\x00\x00\x00\x00\x00"
    b"\x0d\xf0\xad\xba\x01\x00\x00\x00\x00\x00\x00\x00"
    b"\x00\x00\x00\x00\x0d\x00\x00\x00\x00\x00\x00\x00\x0f\x00\x00\x00\x00\x00\x00\x00"
)


def golden() -> bytes:
    header = Header(bytes(range(16)), BOOT, "newline", "interval").encode()
    seeded = seed(header)
    first = encode_record(seeded, Record(2, 12, 12, 0xDEADBEEF), (), [encode_named(b"ada", 10, 12)])
    return header + first + encode_record(seeded, Record(12, 15, 12, 0xBAADF00D), [BY_NUMBER.pack(0, 13, 15)], ())


def test_golden_bytes() -> None:
    assert golden() == GOLDEN
    journal = decode(GOLDEN)
    assert journal.header == Header(bytes(range(16)), BOOT, "newline", "interval")
    assert journal.records == [Record(2, 12, 12, 0xDEADBEEF), Record(12, 15, 12, 0xBAADF00D)]
    assert journal.positions == [128, 192]
    assert producers(GOLDEN, journal, 1) == {b"ada": (10, 12)}
    assert producers(GOLDEN, journal, 2) == {b"ada": (13, 15)}


@pytest.mark.parametrize("zeros", [0, 1, 7, 8, 4096])
def test_zeros_after_the_last_record_are_a_clean_end(zeros: int) -> None:
    journal = decode(GOLDEN + bytes(zeros))
    assert (len(journal.records), journal.torn) == (2, 0)


@pytest.mark.parametrize("boot", [BOOT, b"C" * 16])
def test_a_cut_anywhere_after_the_first_record_is_a_torn_end(boot: bytes) -> None:
    content, records = fuzz_journal.sample()
    first = decode(content).positions[0]
    for length in range(first, len(content.rstrip(b"\0"))):
        journal = decode(content[:length] + bytes(512), boot)
        assert journal.records == records[: len(journal.records)]
        assert len(journal.records) < len(records)


def test_a_cut_before_that_is_damage() -> None:
    content, _ = fuzz_journal.sample()
    for length in range(decode(content).positions[0]):
        with pytest.raises(JournalError):
            decode(content[:length])


@pytest.mark.parametrize("boot", [BOOT, b"C" * 16, b""])
def test_a_changed_byte_before_the_last_record_is_damage(boot: bytes) -> None:
    content, _ = fuzz_journal.sample()
    for position in range(decode(content).positions[-2]):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        with pytest.raises(JournalError):
            decode(bytes(damaged), boot)


def test_a_changed_byte_in_the_last_record_is_a_torn_end() -> None:
    content, records = fuzz_journal.sample()
    *_, begin, end = decode(content).positions
    for position in range(begin, end):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        journal = decode(bytes(damaged), BOOT)
        assert journal.records == records[:-1]
        assert journal.torn


def test_after_a_power_cut_a_hole_between_unsynced_records_is_a_torn_end() -> None:
    header = Header(bytes(16), BOOT, "nul", "never").encode()
    records = [Record(0, 9, 9, 1), Record(9, 12, 9, 2), Record(12, 13, 9, 3), Record(13, 20, 9, 4)]
    parts = [encode_record(seed(header), record, (), ()) for record in records]
    parts[2] = bytes(len(parts[2]))
    content = header + b"".join(parts)
    assert decode(content, b"C" * 16).records == records[:2]
    with pytest.raises(JournalError, match="damaged"):
        decode(content, BOOT)


def test_a_record_of_another_journal_is_not_taken_for_one_of_ours() -> None:
    other = Header(bytes(16), BOOT, "newline", "interval").encode()
    stray = encode_record(seed(other), Record(15, 18, 12, 1), (), ())
    journal = decode(GOLDEN + stray)
    assert len(journal.records) == 2
    assert journal.torn


@pytest.mark.parametrize("position", [9, 5_000, 30_000])
def test_records_that_follow_tell_damage_from_a_torn_end(position: int) -> None:
    header = Header(bytes(16), BOOT, "newline", "always").encode()
    named = [encode_named(b"p%d" % number, 300 * number, 700 * number) for number in range(2000)]
    numbered = [BY_NUMBER.pack(number, 301 * number, 1 << 40 | number) for number in range(2000)]
    content = header + encode_record(seed(header), Record(0, 9, 9, 1), (), named)
    damaged = bytearray(encode_record(seed(header), Record(9, 50, 9, 2), numbered, ()))
    damaged[position] ^= 1
    later = encode_record(seed(header), Record(50, 60, 50, 3), numbered[:1], ())
    begin = len(content) + len(damaged)
    with pytest.raises(
        JournalError, match=f"byte {len(content)} of the journal is damaged, but a later one at byte {begin} is valid"
    ):
        decode(content + damaged + later + bytes(500), BOOT)
    journal = decode(content + damaged + bytes(500), BOOT)
    assert len(journal.records) == 1
    assert journal.torn


def test_a_claimed_length_is_checked_before_it_is_used() -> None:
    claimed = GOLDEN + b"\xff\xff\xff\xff" + bytes(100)
    assert len(decode(claimed).records) == 2
    assert HEADER.size == 64


@given(st.binary(max_size=300))
def test_the_fuzz_target_finds_nothing(data: bytes) -> None:
    fuzz_journal.assert_input(data)


def test_the_fuzz_target_finds_nothing_in_random_edits() -> None:
    source = random.Random()
    for _ in range(300):
        fuzz_journal.assert_input(source.randbytes(3 * source.randrange(1, 4)))
