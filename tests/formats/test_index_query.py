"""The look-up protocol: lines in, queries out; answers in, lines out."""

from __future__ import annotations

import json
import random

import pytest

from tailsrv_formats.index_query import LINE_BYTES, Answer, Malformed, Query, format_time, parse, render, render_error
from tests.fuzz.fuzz_query import assert_input, shaped

NINE = 1795424400 * 10**9  # 2026-11-23T09:00:00Z


@pytest.mark.parametrize(
    ("line", "kind", "value"),
    [
        (b"0", "number", 0),
        (b"1000", "number", 1000),
        (b"007", "number", 7),
        (b"9" * LINE_BYTES, "number", int("9" * LINE_BYTES)),
        (b"-0", "last", 0),
        (b"-10", "last", 10),
        (b'{"number": 5}', "number", 5),
        (b' {"number": 5}'[1:] + b" ", "number", 5),
        (b'{"last":0}', "last", 0),
        (b'{"offset":18446744073709551616}', "offset", 1 << 64),
        (b'{"count":true}', "count", 1),
        (b'{"time":"2026-11-23T09:00:00Z"}', "time", NINE),
        (b'{"time":"2026-11-23T10:30:00.5+01:30"}', "time", NINE + 500_000_000),
        (b'{"time":"2026-11-23T08:59:59.999999-00:00"}', "time", NINE - 1000),
        (b'{"time":1795424400}', "time", NINE),
        (b'{"time":1795424400.000001}', "time", NINE + 1000),
        (b'{"time":-1.5}', "time", -1_500_000_000),
    ],
)
def test_what_is_a_request(line: bytes, kind: str, value: int) -> None:
    assert parse(line) == Query(kind, value, line.startswith(b"{"))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"-",
        b"+5",
        b" 5",
        b"5 ",
        b"--5",
        b"1_000",
        b"0x10",
        b"5.0",
        b"1e3",
        b"\xd9\xa1",
        b"end",
        b"GET / HTTP/1.1",
        b"[5]",
        b"5\0",
        b"9" * (LINE_BYTES + 1),
    ],
)
def test_what_is_none(line: bytes) -> None:
    malformed = parse(line)
    assert isinstance(malformed, Malformed)
    assert not malformed.is_json


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{}",
        b'{"number":1,"last":2}',
        b'{"number":-1}',
        b'{"number":"1"}',
        b'{"number":1.5}',
        b'{"number":true}',
        b'{"number":null}',
        b'{"count":false}',
        b'{"count":1}',
        b'{"time":"2026-11-23T09:00:00"}',
        b'{"time":"yesterday"}',
        b'{"time":"2026-13-23T09:00:00Z"}',
        b'{"time":NaN}',
        b'{"time":1e999}',
        b'{"numbr":1}',
        b'{"number":1} x',
        b'{"\xff":1}',
    ],
)
def test_an_invalid_json_request_is_answered_with_an_error(line: bytes) -> None:
    malformed = parse(line)
    assert isinstance(malformed, Malformed)
    assert malformed.is_json


def test_an_answer_is_this_line() -> None:
    answer = Answer(7, 100, 20, format_time(NINE + 123_456_789), 9, 150)
    assert render(answer) == (
        b'{"number":7,"offset":100,"length":20,"time":"2026-11-23T09:00:00.123456Z","count":9,"end":150}\n'
    )
    following = Answer(9, 150, None, None, 9, 150)
    assert render(following) == b'{"number":9,"offset":150,"length":null,"time":null,"count":9,"end":150}\n'


def test_only_an_answer_without_an_exact_time_states_that() -> None:
    assert json.loads(render(Answer(7, 100, 20, None, 9, 150, exact=False)))["exact"] is False
    assert b"exact" not in render(Answer(7, 100, 20, None, 9, 150, exact=True))


def test_an_error_is_one_line_of_ascii_in_the_language_of_the_request() -> None:
    assert render_error("nö", False) == b"error: n\\xf6\n"
    assert json.loads(render_error("nö", True)) == {"error": "n\\xf6"}


def test_every_request_is_answered_with_one_line() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        data = rng.randbytes(rng.randrange(80))
        assert_input(data)
        assert_input(shaped(data))
