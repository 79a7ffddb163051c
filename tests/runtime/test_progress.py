"""The progress bar: it says how far it is, ends with the work, and never harms it."""

from __future__ import annotations

import io
import time

import pytest

from tailsrv_runtime.progress import ProgressBar


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_it_shows_bar_bytes_rate_and_the_time_that_is_left(clock: list[float]) -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, "indexing")
    bar(0, 10**10)
    clock[0] += 2
    bar(4 * 10**9, 10**10)
    last = stream.getvalue().rpartition("\r")[2]
    assert last.split() == [
        "\x1b[1mindexing\x1b[0m", "[############------------------]", "40%", "4.0", "of", "10.0", "GB", "2000", "MB/s",
        "0:03", "left",
    ]  # fmt: skip


def test_it_is_drawn_ten_times_a_second_at_most_and_the_end_always(clock: list[float]) -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, "indexing")
    for done in range(1001):
        clock[0] += 0.001
        bar(done, 1000)
    assert stream.getvalue().count("\r") <= 12
    assert "100%" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    shown = stream.getvalue()
    bar(1000, 1000)
    bar(1000, 2000)
    assert stream.getvalue() == shown


def test_a_shorter_line_leaves_nothing_of_the_longer_one(clock: list[float]) -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, "indexing")
    for done in (0, 10, 999_999):
        clock[0] += 100
        bar(done, 10**6)
    lines = stream.getvalue().split("\r")[1:]
    widths = [len(line.rstrip()) for line in lines]
    assert all(len(later) >= width for later, width in zip(lines[1:], widths, strict=False))


def test_no_color_shows_the_same_without_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    bar = ProgressBar(stream, "indexing")
    bar(0, 100)
    bar(100, 100)
    assert "\x1b" not in stream.getvalue()
    assert "100%" in stream.getvalue()


def test_a_dumb_terminal_gets_a_plain_line_for_each_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    bar = ProgressBar(stream, "indexing")
    for done in range(101):
        bar(done, 100)
    assert not {"\x1b", "\r"} & set(stream.getvalue())
    assert stream.getvalue().count("\n") == 10


def test_a_narrow_terminal_gets_one_line(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    bar = ProgressBar(stream, "indexing")
    bar(0, 10**10)
    clock[0] += 10
    bar(10**9, 10**10)
    assert all(len(line) < 40 for line in stream.getvalue().split("\r"))


def test_a_terminal_that_goes_away_ends_the_drawing_alone() -> None:
    writes: list[str] = []

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            raise OSError(5, text)

    bar = ProgressBar(Gone(), "indexing")
    bar(0, 100)
    bar(100, 100)
    assert len(writes) == 1


def test_nothing_to_do_shows_nothing() -> None:
    stream = io.StringIO()
    ProgressBar(stream, "indexing")(0, 0)
    assert stream.getvalue() == ""
