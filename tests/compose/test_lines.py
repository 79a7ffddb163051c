"""Lines out of pipes, and into a file whose disk may hang."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from compose.up.lines import LONGEST_LINE, LineSplitter, LogFile
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.line_writer import BUFFER_BYTES
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tailsrv_runtime.reactor import Reactor


REPORT = "tailsrv-up: {} log lines dropped\n".format


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_are_the_same_however_they_arrive(size: int) -> None:
    data = b"one\n\ntwo\nthree"
    splitter = LineSplitter()
    lines = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
    assert lines + splitter.end() == [b"one", b"", b"two", b"three"]


def test_of_a_very_long_line_the_beginning_is_kept() -> None:
    splitter = LineSplitter()
    lines = []
    for _ in range(64):
        lines += splitter.feed(b"x" * (1 << 16))
    assert len(splitter._rest) <= LONGEST_LINE
    lines += splitter.feed(b"\nnext\n")
    assert lines == [b"x" * LONGEST_LINE + b" ... (%d bytes more)" % (63 << 16), b"next"]


def test_a_file_gets_every_line(tmp_path: Path, reactor: Reactor) -> None:
    log_file = LogFile(str(tmp_path / "log"), reactor, REPORT)
    for number in range(1000):
        log_file.write(f"{number}\n")
    log_file.close()
    assert (tmp_path / "log").read_text() == "".join(f"{number}\n" for number in range(1000))


def test_a_disk_that_hangs_costs_bounded_memory_and_what_is_lost_is_counted(
    tmp_path: Path, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that does not return stands for the disk."""
    read_end, write_end = os.pipe()
    write = os.write

    def hang(fd: int, data: bytes) -> int:
        os.read(read_end, 1)
        return write(fd, data)

    log_file = LogFile(str(tmp_path / "log"), reactor, REPORT)
    monkeypatch.setattr(os, "write", hang)
    line = "x" * 99 + "\n"
    total = 3 * BUFFER_BYTES // len(line)
    for _ in range(total):
        log_file.write(line)
    assert sum(map(len, log_file._lines)) <= BUFFER_BYTES
    monkeypatch.undo()
    os.close(write_end)  # the one write that hangs goes on
    log_file.close()
    assert log_file._thread is not None
    log_file._thread.join()
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    counts = [int(each.split()[1]) for each in lines if each.endswith(" log lines dropped\n")]
    assert counts
    assert lines.count(line) == len(lines) - len(counts) == total - sum(counts)
    os.close(read_end)


def test_a_named_pipe_that_is_not_read_is_a_log_file_too(tmp_path: Path, reactor: Reactor) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(FatalError, match="No such device"):
        LogFile(str(path), reactor, REPORT)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log_file = LogFile(str(path), reactor, REPORT)
    for _ in range(10_000):
        log_file.write("x" * 99 + "\n")
    log_file.close()
    wait_until(lambda: os.read(reader, 100) == b"x" * 99 + b"\n")
    os.close(reader)


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path, reactor: Reactor) -> None:
    with pytest.raises(FatalError, match="missing/log: No such file or directory; name a file that can be written"):
        LogFile(str(tmp_path / "missing" / "log"), reactor, REPORT)
