"""What the acknowledged lane says and hears, without sockets."""

from __future__ import annotations

import random
import string

import pytest

from collator.acks import Progress, note_run
from tailsrv_formats.acknowledgement import InvalidNameError, error_line, read_name, run_lines
from tests.fuzz import fuzz_ack_name


@pytest.mark.parametrize("name", [b"a", b"web-1.example:9_", b"x" * 128, b""])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_name_is_read_once_its_line_is_whole(name: bytes, ending: bytes) -> None:
    line = name + ending
    for length in range(len(line)):
        assert read_name(line[:length]) is None
    assert read_name(line) == name


@pytest.mark.parametrize(
    "line", [b"a b\n", b"x" * 129 + b"\n", b"a/b\n", b"\xc3\xa4\n", b"a\rb\n", b"\0\n", b" a\n", b"a\r\r\n", b"x" * 130]
)
def test_what_is_no_name_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidNameError):
        read_name(line)


def test_runs_that_touch_are_one_line_and_others_are_lines_of_their_own() -> None:
    runs: list[int] = []
    note_run(runs, 10, 100, 110)
    note_run(runs, 15, 110, 115)
    assert run_lines(runs) == b"15 115\n"
    note_run(runs, 20, 200, 205)
    note_run(runs, 26, 205, 211)
    note_run(runs, 27, 300, 301)
    assert run_lines(runs) == b"15 115\n26 211\n27 301\n"


def test_a_new_producer_begins_at_nothing() -> None:
    assert Progress().line() == b"0 0\n"
    assert Progress(7, 99).line() == b"7 99\n"


def test_an_error_line_is_ascii_whatever_it_quotes() -> None:
    assert error_line("naïve") == b"error: na\\xefve\n"


def test_the_fuzz_target_finds_nothing_in_random_names() -> None:
    source = random.Random()
    alphabet = (string.ascii_letters + string.digits + "._:-").encode() * 3 + b"\n\r\0 /\xff"
    for _ in range(5000):
        fuzz_ack_name.assert_input(bytes(source.choices(alphabet, k=source.randrange(150))))
