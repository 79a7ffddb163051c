"""Sizes and durations: what people write, and what they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_formats.errors import UsageError
from tailsrv_formats.quantities import LARGEST_SIZE, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10k", 10_000),
        ("10K", 10_000),
        ("10kB", 10_000),
        ("1.5M", 1_500_000),
        ("64KiB", 65536),
        ("64 KiB", 65536),
        ("1GiB", 1 << 30),
        ("2Ti", 2 << 40),
        ("512B", 512),
        ("9223372036854775807", LARGEST_SIZE),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "many", "-1", "+1", "1_000", "1.5", "1XB", "iB", "1KiBi", "9223372036854775808", "1e9", "٣", "nan", " 1"],
)
def test_an_invalid_size_is_an_error_that_states_the_valid_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"size; write|whole number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5),
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("7d", 604800),
        ("1 h", 3600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_duration_of_zero_is_valid_where_it_is_allowed() -> None:
    assert parse_duration("0", allow_zero=True) == parse_duration("0ms", allow_zero=True) == 0
    with pytest.raises(UsageError, match="duration; write"):
        parse_duration("-1", allow_zero=True)


@pytest.mark.parametrize("text", ["", ".", ".s", "0", "0s", "-5", "soon", "nan", "inf", "1e999", "5 min", "1w", "٣s"])
def test_an_invalid_duration_is_an_error_that_states_the_valid_forms(text: str) -> None:
    with pytest.raises(UsageError, match="duration; write"):
        parse_duration(text)


@given(st.integers(0, LARGEST_SIZE))
def test_a_size_reads_as_it_is_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"), [(1 << 28, "256MiB"), (10_000_000, "10M"), (4097, "4097"), (0, "0"), (1 << 20, "1MiB")]
)
def test_a_size_is_written_in_its_shortest_form(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(10, "10s"), (0.5, "500ms"), (90, "90s"), (7200, "2h"), (604800, "7d"), (1.5, "1.5s"), (300, "5m")],
)
def test_a_duration_is_written_in_its_shortest_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text) == seconds
