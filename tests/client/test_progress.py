"""Promises of the progress display and of the status line on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tailsrv_client.progress import describe, format_time, human, with_bar
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping


def test_sizes_are_in_powers_of_1000() -> None:
    assert [human(n) for n in (0, 999, 1000, 12_345_678, 5e15)] == ["0 B", "999 B", "1.0 kB", "12.3 MB", "5000.0 TB"]


def test_times_are_minutes_and_seconds() -> None:
    assert [format_time(n) for n in (0, 42.9, 723, 10_867)] == ["0:00", "0:42", "12:03", "3:01:07"]


def test_a_share_is_never_more_than_the_whole() -> None:
    assert describe(11, 5, 10) == "11 B  5 B/s  100 %"
    assert describe(11, 5, None) == "11 B  5 B/s"
    assert describe(0, 0, 0) == "0 B  0 B/s"


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("total", [None, 0, 100])
def test_the_line_never_reaches_the_last_column(width: int, total: int | None) -> None:
    for done in (0, 50, 101):
        assert len(with_bar("50 B  5 B/s  50 %  ETA 0:10", done, total, width)) < max(width, 2)


def test_a_bar_is_as_full_as_the_transfer() -> None:
    assert with_bar("x", 5, 10, 80) == f"[{'#' * 20}{'-' * 20}]  x"
    assert with_bar("x", 10, 10, 18) == f"[{'#' * 12}]  x"


def shown(script: str, environment: Mapping[str, str]) -> bytes:
    """What a script writes to standard error, when that is a terminal."""
    master, slave = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", script],
            stderr=slave,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            timeout=PATIENCE,
            check=True,
        )
        os.set_blocking(master, False)
        try:
            return os.read(master, 1 << 16).replace(b"\r\n", b"\n")
        except BlockingIOError:
            return b""
    finally:
        os.close(master)
        os.close(slave)


TRANSFER = """
from tailsrv_client.progress import Progress
from tailsrv_client.standard_error import write_message
now = 0.0
progress = Progress(forced=FORCED, total=100, clock=lambda: now)
now = 4.0
progress.at(50)
write_message("lag", "50 bytes behind")
now = 8.0
progress.end(100)
"""


@pytest.mark.parametrize("forced", [False, True])
def test_a_line_is_written_above_the_status_line(forced: bool) -> None:
    output = shown(TRANSFER.replace("FORCED", str(forced)), {"TERM": "xterm"})
    erase = b"\r\x1b[K"
    half = b"50 B  12 B/s  50 %  ETA 0:04"
    assert output.startswith(erase + b"[###")
    before, line, after = output.partition(erase + b"lag: 50 bytes behind\n")
    assert line
    assert before.endswith(half)
    assert after.startswith(b"[###")
    assert half in after, "the status line is drawn again"
    assert output.endswith(b"#]  100 B  12 B/s  100 %\n")


def test_a_terminal_that_cannot_redraw_a_line_gets_none() -> None:
    assert shown(TRANSFER.replace("FORCED", "False"), {"TERM": "dumb"}) == b"lag: 50 bytes behind\n"
    plain = shown(TRANSFER.replace("FORCED", "True"), {"TERM": "dumb"})
    assert plain == b"50 B  12 B/s  50 %\nlag: 50 bytes behind\n100 B  12 B/s  100 %\n"


def test_what_is_written_is_one_line_of_printable_ascii() -> None:
    script = r"from tailsrv_client.standard_error import write_message; write_message('x', 'a\n\x1b[31m \u202e b')"
    assert shown(script, {"TERM": "xterm"}) == rb"x: a \x1b[31m \u202e b" + b"\n"
