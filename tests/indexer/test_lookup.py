"""Every answer against a naive reading; and no answer from an index that is not right."""

from __future__ import annotations

import random
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.arrival_log import ArrivalLog
from indexer.errors import CorruptIndexError, NotFoundError
from indexer.file import IndexFile
from indexer.identity import identified
from indexer.lookup import Lookup
from indexer.walker import Walker
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.index_file import Entry, Header, encode_entries
from tailsrv_formats.index_query import Query, format_time
from tests.fuzz.fuzz_index_file import RIGHT, assert_input, edited
from tests.support.naive_index import Truth, framings, lines, payload_lists

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 10**9


class Known:
    """A stream that is indexed as it grows, a second from wake-up to wake-up."""

    def __init__(self, truth: Truth, interval: int, directory: str, limit: int = 1 << 20) -> None:
        self.truth = truth
        self.content = truth.content
        framing = make_framing(truth.framing, limit)
        header = Header(truth.framing, interval, 0)
        self.index = IndexFile(f"{directory}/index", header)
        self.index.begin(header)
        self.walker = Walker(framing, interval, header.seed())
        self.arrivals = ArrivalLog(Entry(0, 0, 0, exact=False))
        self.lookup = Lookup(framing, self.index, self.arrivals, self.read)
        self.time = 0

    def read(self, offset: int, count: int) -> bytes:
        return self.content[offset : offset + count]

    def grow(self, end: int) -> None:
        self.time += SECOND
        while self.walker.wanted <= end:
            raw = self.walker.feed(self.content[self.walker.position : end])
            if raw and not self.index.count:
                self.index.identify(identified(self.index.header, self.read))
            self.index.append(encode_entries(raw, self.time, exact=True))
        if self.walker.number > self.arrivals.last().number:
            self.arrivals.add(Entry(self.walker.number, self.walker.boundary, self.time, exact=True))

    def ask(self, kind: str, value: int) -> tuple[int, int, int | None, int, int]:
        answer = self.lookup.answer(Query(kind, value, True))
        return answer.number, answer.offset, answer.length, answer.count, answer.end

    def told(self, number: int) -> tuple[int, int, int | None, int, int]:
        truth = self.truth
        length = len(truth.messages[number]) if number < truth.count else None
        return number, truth.offsets[number], length, truth.count, truth.end


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        yield path


@given(framings(), payload_lists(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_every_answer_is_that_of_a_naive_reading(
    name: str, payloads: list[bytes], interval: int, rng: random.Random
) -> None:
    truth = Truth(name, payloads)
    with tempfile.TemporaryDirectory() as directory:
        known = Known(truth, interval, directory)
        for end in [*sorted(rng.choices(range(truth.end + 1), k=4)), truth.end]:
            known.grow(end)
        for number in range(truth.count + 1):
            assert known.ask("number", number) == known.told(number)
            assert known.ask("last", truth.count - number) == known.told(number)
            assert known.lookup.offset_of(number) == truth.offsets[number]
        for byte in range(0, truth.end, 1 + truth.end // 300):
            assert known.ask("offset", byte) == known.told(truth.holder(byte))
        assert known.ask("offset", truth.end) == known.told(truth.count)
        assert known.ask("count", 1) == known.told(truth.count)
        assert known.ask("last", truth.count + 7) == known.told(0)
        for kind, value in (("number", truth.count + 1), ("offset", truth.end + 1)):
            with pytest.raises(NotFoundError):
                known.ask(kind, value)
        known.index.close()


@given(framings(), payload_lists(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_a_time_is_answered_by_the_message_or_one_of_the_same_interval_before_it_never_by_a_later_one(
    name: str, payloads: list[bytes], interval: int, rng: random.Random
) -> None:
    truth = Truth(name, payloads)
    with tempfile.TemporaryDirectory() as directory:
        known = Known(truth, interval, directory)
        arrived: list[int] = []  # the time of each message
        for end in [*sorted(rng.choices(range(truth.end + 1), k=6)), truth.end]:
            known.grow(end)
            arrived += [known.time] * (known.walker.number - len(arrived))
        live = known.arrivals
        for forgotten in (False, True):
            if forgotten:
                # After a restart there is the index alone, and when it was restarted.
                last = known.index.entry(known.index.count - 1)
                later = ArrivalLog(last)
                known.lookup = Lookup(make_framing(name), known.index, later, known.read)
                if live.last().number > last.number:
                    later.add(live.last()._replace(time=known.time + SECOND, exact=False))
            for time in range(0, known.time + SECOND, SECOND // 2):
                first = next((number for number, then in enumerate(arrived) if then >= time), truth.count)
                number = known.ask("time", time)[0]
                assert number <= first
                if forgotten:
                    # Between the answer and the message there is no boundary that begins a interval.
                    bases = [0, *known.truth.entries(interval, 0)[0::3]]
                    assert number >= max(base for base in bases if base <= first)
                else:
                    assert number == first
        known.index.close()


@pytest.mark.parametrize("name", FRAMINGS)
def test_an_answer_tells_the_time_by_which_the_message_was_there(name: str, directory: str) -> None:
    truth = Truth(name, lines(100))
    known = Known(truth, 64, directory)
    known.grow(truth.offsets[40] + 1)  # the last byte is of a message that is not whole
    known.grow(truth.offsets[41])
    known.grow(truth.end)
    times = [known.lookup.answer(Query("number", number, True)).time for number in (0, 39, 40, 41, 99)]
    assert times == [format_time(second * SECOND) for second in (1, 1, 2, 3, 3)]
    known.index.close()


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_look_up_reads_two_intervals_at_most_however_long_the_messages_are(name: str, directory: str) -> None:
    truth = Truth(name, [b"a" * 60000, *lines(50), b"b" * 60000, b"c"])
    known = Known(truth, 256, directory)
    known.grow(truth.end)
    asked: list[int] = []

    def read(offset: int, count: int) -> bytes:
        asked.append(count)
        return known.content[offset : offset + count]

    known.lookup = Lookup(make_framing(name), known.index, known.arrivals, read)
    for number in range(truth.count + 1):
        assert known.ask("number", number) == known.told(number)
        assert known.ask("offset", truth.offsets[number])[0] == number
    assert max(asked) <= 2 * 256 + 32
    known.index.close()


def test_a_stream_that_was_rewritten_gets_no_answer_where_it_was(directory: str) -> None:
    truth = Truth("newline", lines(100))
    known = Known(truth, 64, directory)
    known.grow(truth.end)
    place = truth.offsets[50]
    # A line is cut in two: nothing moves, but all numbers behind it are wrong from here on.
    known.content = truth.content[: place + 5] + b"\n" + truth.content[place + 6 :]
    with pytest.raises(CorruptIndexError):
        known.ask("number", 50)
    assert known.ask("number", 3) == known.told(3)
    known.index.close()


def test_whatever_an_index_file_holds_no_answer_is_wrong(directory: str) -> None:
    rng = random.Random(11)
    assert assert_input(RIGHT, directory) == 2 * 121
    for _ in range(300):
        data = rng.randbytes(rng.randrange(12))
        assert_input(data, directory)
        assert_input(edited(data), directory)


def test_the_same_inputs_find_an_index_that_is_not_checked(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: without the entries' checks some answers are wrong, and it sees them."""
    monkeypatch.setattr("indexer.blocks.holds", lambda *_: True)
    monkeypatch.setattr("indexer.identity.holds", lambda *_: True)
    rng = random.Random(1)

    def ask_all() -> None:
        for _ in range(1000):
            assert_input(edited(rng.randbytes(rng.randrange(12))), directory)

    with pytest.raises(AssertionError):
        ask_all()
