"""What a header means, however it arrives."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_formats.header import HEADER_BYTES, NEVER, WHERE, HeaderError, Request, parse, parse_available_range
from tests.fuzz import fuzz_header

LARGEST = 2**63 - 1

MEANINGS = {
    b"0\n": Request(0),
    b"1000\n": Request(1000),
    b"+7\n": Request(7),
    b"007\n": Request(7),
    b"  12 \t\r\n": Request(12),
    b"12\r\n": Request(12),
    b"%d\n" % LARGEST: Request(LARGEST),
    b"-100\n": Request(100, from_end=True),
    b"-0\n": Request(0, from_end=True),
    b"-%d\n" % 2**63: Request(2**63, from_end=True),
    b"end\n": Request(0, from_end=True),
    b"0 10\n": Request(0, count=10),
    b"5\t 0\r\n": Request(5, count=0),
    b"+5 now\n": Request(5, until_now=True),
    b"-5 now \n": Request(5, from_end=True, until_now=True),
    b"end 100\n": Request(0, from_end=True, count=100),
    b"0".rjust(63) + b"\n": Request(0),
    b"where\n": WHERE,
    b" where\t\r\n": WHERE,
}

NOT_HEADERS = (
    b"\n",
    b"  \r\n",
    b"now\n",
    b"END\n",
    b"+\n",
    b"-\n",
    b"--1\n",
    b"+-1\n",
    b"+end\n",
    b"- 5\n",
    b"1_000\n",
    b"1.0\n",
    b"0x10\n",
    b"5 -5\n",
    b"5 +5\n",
    b"5 end\n",
    b"5 5 5\n",
    b"5\r5\n",
    b"5now\n",
    b"\x005\n",
    b"5\x0b\n",
    "١٢\n".encode(),
    b"%d\n" % 2**63,
    b"-%d\n" % (2**63 + 1),
    b"0 %d\n" % 2**63,
    b"9" * 63 + b"\n",
    b"0".rjust(64) + b"\n",
    b"0" * 64,
    b"GET / HTTP/1.1\r\n",
    b"where now\n",
    b"where 1\n",
    b"+where\n",
    b"WHERE\n",
)


@pytest.mark.parametrize("header", MEANINGS)
def test_a_header_means_the_same_whole_byte_by_byte_and_before_junk(header: bytes) -> None:
    assert parse(header) == MEANINGS[header]
    assert parse(header + b"junk\n" * 20) == MEANINGS[header]
    assert all(parse(header[:length]) is None for length in range(len(header)))


@pytest.mark.parametrize("line", [b"0 0\n", b"7 1234\n", b"0 %d\n" % LARGEST])
def test_the_answer_to_where_is_read_as_it_is_written(line: bytes) -> None:
    reach = parse_available_range(line)
    assert reach is not None
    assert reach.line() == line
    assert parse_available_range(line.replace(b"\n", b"\r\n")) == reach


@pytest.mark.parametrize("line", [b"", b"0 0", b"0\n", b"0 -1\n", b"a b\n", b"0 0 0\n", b"0 " + b"9" * 20 + b"\n"])
def test_what_is_no_answer_to_where_is_none(line: bytes) -> None:
    assert parse_available_range(line) is None


@pytest.mark.parametrize("header", MEANINGS)
def test_a_fin_ends_a_header_as_a_newline_does(header: bytes) -> None:
    assert parse(header.rstrip(b"\n"), ended=True) == MEANINGS[header]


@pytest.mark.parametrize("header", NOT_HEADERS)
def test_anything_else_is_an_error_however_it_ends(header: bytes) -> None:
    with pytest.raises(HeaderError):
        parse(header)
    with pytest.raises(HeaderError):
        parse(header.rstrip(b"\n"), ended=True)


def test_an_error_is_seen_as_soon_as_no_header_can_come_of_it() -> None:
    assert parse(b" " * (HEADER_BYTES - 1)) is None
    with pytest.raises(HeaderError):
        parse(b" " * HEADER_BYTES)


@given(
    sign=st.sampled_from([b"", b"+", b"-"]),
    start=st.integers(0, LARGEST),
    stop=st.one_of(st.none(), st.just("now"), st.integers(0, LARGEST)),
    blanks=st.lists(st.text(" \t", max_size=4), min_size=3, max_size=3),
    junk=st.binary(max_size=20),
)
def test_every_number_in_range_is_understood(
    sign: bytes, start: int, stop: int | str | None, blanks: list[str], junk: bytes
) -> None:
    before, between, after = (each.encode() for each in blanks)
    header = before + sign + str(start).encode()
    if stop is not None:
        header += b" " + between + str(stop).encode()
    header += after + b"\n"
    assert parse(header + junk) == Request(
        start,
        from_end=sign == b"-",
        count=stop if isinstance(stop, int) else None,
        until_now=stop == "now",
    )


@given(st.binary(max_size=100))
def test_no_bytes_upset_the_parser(data: bytes) -> None:
    fuzz_header.assert_input(data)
    fuzz_header.assert_input(fuzz_header.shaped(data))


def test_the_fuzz_target_finds_nothing_in_random_headers() -> None:
    source = random.Random()
    for _ in range(2000):
        fuzz_header.assert_input(fuzz_header.shaped(source.randbytes(source.randrange(80))))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(10), (10, NEVER)),
        (Request(200), (200, NEVER)),
        (Request(10, from_end=True), (90, NEVER)),
        (Request(101, from_end=True), (0, NEVER)),
        (Request(0, from_end=True), (100, NEVER)),
        (Request(10, count=5), (10, 15)),
        (Request(10, from_end=True, count=500), (90, 590)),
        (Request(10, until_now=True), (10, 100)),
        (Request(200, until_now=True), (200, 100)),
    ],
)
def test_a_request_is_a_range_of_a_file_of_100_bytes(request_: Request, expected: tuple[int, int]) -> None:
    assert request_.range(100) == expected
