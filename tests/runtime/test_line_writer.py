"""A writer never waits for its reader, and a reader that reads on gets whole lines and the number of the others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import termios
import threading
import time
import tty
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime import line_writer
from tailsrv_runtime.line_writer import BUFFER_BYTES, LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tailsrv_runtime.reactor import Reactor

LINE_BYTES = 100


class Reader:
    """The other end of a descriptor."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind in {"pipe", "refused"}:
            self.end, self.fd = os.pipe()
        elif kind == "terminal":
            self.end, self.fd = pty.openpty()
            tty.setraw(self.fd)
        else:
            ours, theirs = socket.socketpair()
            self.end, self.fd = ours.detach(), theirs.detach()
        self.is_open = True

    def read(self, until: bytes = b"") -> bytes:
        """What comes until `until`, or else what is there now."""
        data = b""
        while not (until and until in data):
            if not select.select([self.end], [], [], 30.0 if until else 0.0)[0]:
                break
            with contextlib.suppress(OSError):
                data += os.read(self.end, 1 << 16)
        return data

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            os.close(self.end)


@pytest.fixture(params=["pipe", "terminal", "socket", "refused"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """One for each kind; "refused" is a pipe that can't be reopened, as after a change of user."""
    reader = Reader(request.param)
    if reader.kind == "refused":
        monkeypatch.setattr(line_writer._Sink, "_reopen", _refuse)
    yield reader
    reader.close()
    os.close(reader.fd)


def _refuse(_sink: object) -> None:
    raise PermissionError(13, "Permission denied")


def line(number: int) -> str:
    return f"{number:08} ".ljust(LINE_BYTES - 1, "x") + "\n"


def run_until(reactor: Reactor, condition: Callable[[], bool]) -> None:
    """Turn the loop until something holds."""
    deadline = time.monotonic() + 30

    def look() -> None:
        if condition() or time.monotonic() > deadline:
            reactor.stop()
        else:
            reactor.call_later(0.001, look)

    look()
    reactor.run()
    assert condition()


def numbers(data: bytes) -> list[int]:
    """The lines' numbers; every line has to be whole."""
    lines = data.replace(b"\r\n", b"\n").splitlines(keepends=True)
    for each in lines:
        assert each.decode() == line(int(each[:8])), each
    return [int(each[:8]) for each in lines]


def test_a_reader_that_reads_gets_everything_at_once(reader: Reader) -> None:
    writer = LineWriter(reader.fd)
    for number in range(10):
        writer.write(line(number))
    assert numbers(reader.read(until=line(9)[:-1].encode() + b"\n")) == list(range(10))
    writer.close()


def test_a_full_reader_drops_what_exceeds_the_buffer_and_the_count_comes_when_it_reads_on(
    reader: Reader, reactor: Reactor
) -> None:
    """No line is torn or out of order; the count comes without another line."""
    writer = LineWriter(reader.fd, "{} dropped\n".format)
    writer.attach(reactor)
    total = 20_000
    for number in range(total):
        writer.write(line(number))
    assert writer.waits
    dropped = writer.dropped
    assert dropped
    received = bytearray()

    def read_on() -> bool:
        received.extend(reader.read())
        return received.endswith(b"dropped\n")

    run_until(reactor, read_on)
    lines, _, count = bytes(received).removesuffix(b"\n").rpartition(b"\n")
    written = numbers(lines + b"\n")
    assert written == list(range(len(written)))
    assert int(count.split()[0]) == dropped == total - len(written)
    assert not writer.waits
    assert not writer.dropped
    writer.write(line(1))
    assert numbers(reader.read(until=b"x\n")) == [1]
    writer.detach()
    writer.close()


def test_memory_for_a_reader_that_never_reads_is_bounded(reader: Reader, reactor: Reactor) -> None:
    writer = LineWriter(reader.fd)
    writer.attach(reactor)
    for number in range(20_000):
        writer.write(line(number))
    assert sum(map(len, writer._queue)) <= BUFFER_BYTES
    writer.detach()
    writer.close()


def test_the_shared_description_stays_as_it_is(reader: Reader) -> None:
    writer = LineWriter(reader.fd)
    writer.write(line(0))
    assert not fcntl.fcntl(reader.fd, fcntl.F_GETFL) & os.O_NONBLOCK
    writer.close()


def test_a_reader_that_has_gone_costs_nothing_and_never_wakes_the_loop(reader: Reader, reactor: Reactor) -> None:
    writer = LineWriter(reader.fd)
    writer.attach(reactor)
    for number in range(5000):
        writer.write(line(number))
    assert writer.waits
    reader.close()
    run_until(reactor, lambda: not writer.waits)
    for number in range(5000):
        writer.write(line(number))
    assert not writer.waits
    assert writer.dropped
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    reactor.after_round(count)
    reactor.call_later(0.2, reactor.stop)
    reactor.run()
    assert rounds <= 2
    writer.detach()
    writer.close()


def test_lines_of_several_threads_are_never_interleaved(reader: Reader, reactor: Reactor) -> None:
    """While the loop writes what waits."""
    writer = LineWriter(reader.fd)
    writer.attach(reactor)

    def write_from(first: int) -> None:
        for number in range(first, first + 1000):
            writer.write(line(number))

    threads = [threading.Thread(target=write_from, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    received = bytearray()

    def read_on() -> bool:
        received.extend(reader.read())
        return received.count(b"\n") >= 3000 - writer.dropped and not any(thread.is_alive() for thread in threads)

    run_until(reactor, read_on)
    whole = bytes(received)
    assert len(numbers(whole)) == len(set(numbers(whole))) >= 3000 - writer.dropped
    writer.detach()
    writer.close()


def test_the_size_of_the_backlog_is_reported_to_the_callback(reader: Reader, reactor: Reactor) -> None:
    writer = LineWriter(reader.fd)
    writer.attach(reactor)
    for number in range(20_000):
        writer.write(line(number))
    called: list[bool] = []
    writer.call_when_room(lambda: called.append(writer.waits))
    assert not called
    run_until(reactor, lambda: bool(reader.read() or called) and bool(called))
    assert called == [False]
    writer.detach()
    writer.close()


def test_a_forked_child_neither_repeats_what_waits_nor_takes_the_lock_with_it() -> None:
    reader = Reader("pipe")
    writer = LineWriter(reader.fd)
    for number in range(2000):
        writer.write(line(number))
    with writer._lock:
        pid = os.fork()
        if pid == 0:
            try:
                writer.after_fork()
                signal.alarm(30)
                assert writer.flush()
                writer.write(line(9999))
                os._exit(0 if writer._queue or writer._rest else 2)
            except BaseException:  # noqa: BLE001 - a child of the test's
                os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    received = bytearray()
    while not writer.flush():
        received += reader.read()
    received += reader.read()
    assert numbers(bytes(received)) == list(range(2000))
    writer.close()


def test_a_named_pipe_whose_reader_comes_back_gets_lines_again(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY)
    writer = LineWriter(fd, "{} dropped\n".format)
    writer.write(line(1))
    os.close(first)
    writer.write(line(2))
    writer.write(line(3))
    second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.write(line(4))
    writer.write(line(5))
    assert os.read(second, 4096).decode() == f"{line(1)}2 dropped\n{line(4)}{line(5)}"
    os.close(second)
    os.close(fd)
    writer.close()


def test_a_full_disk_tears_no_line_and_is_counted(tmp_path: Path) -> None:
    """A file that may not grow (RLIMIT_FSIZE stands for a full disk: it, too, takes a part first)."""
    path = tmp_path / "log"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import resource  # noqa: PLC0415 - the child's

            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            writer = LineWriter(fd, "{} dropped\n".format)
            resource.setrlimit(resource.RLIMIT_FSIZE, (LINE_BYTES * 3 // 2, resource.RLIM_INFINITY))
            for number in range(5):
                writer.write(line(number))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            writer.write(line(5))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_text() == line(0) + line(1) + "3 dropped\n" + line(5)


def test_two_processes_that_share_a_file_lose_no_line(tmp_path: Path) -> None:
    """A shell's `>log` has no O_APPEND: the offset is in the shared description, and has to be used."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    pids = []
    for first in (0, 1000):
        pids.append(os.fork())
        if pids[-1] == 0:
            writer = LineWriter(fd)
            for number in range(first, first + 1000):
                writer.write(line(number))
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(fd)
    assert sorted(numbers(path.read_bytes())) == list(range(2000))


def test_a_stopped_terminal_takes_lines_again_when_it_goes_on(reactor: Reactor) -> None:
    reader = Reader("terminal")
    writer = LineWriter(reader.fd)
    writer.attach(reactor)
    termios.tcflow(reader.fd, termios.TCOOFF)
    writer.write(line(0))
    assert writer.waits
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    termios.tcflow(reader.fd, termios.TCOON)
    run_until(reactor, lambda: not writer.waits)
    assert numbers(reader.read(until=b"x\n")) == [0]
    writer.detach()
    writer.close()
    reader.close()
    os.close(reader.fd)


@pytest.mark.parametrize("kind", ["closed", "/dev/full", "/dev/null", "read-only"])
def test_a_descriptor_that_takes_nothing_raises_nothing(kind: str, reactor: Reactor) -> None:
    if kind == "closed":
        fd = 987
    elif kind == "read-only":
        fd = os.open("/dev/null", os.O_RDONLY)
    else:
        fd = os.open(kind, os.O_WRONLY)
    writer = LineWriter(fd)
    writer.attach(reactor)
    writer.write("lone surrogate \udcff\n")
    assert not writer.waits
    assert writer.dropped == (kind != "/dev/null")
    writer.detach()
    writer.close()
    if kind != "closed":
        os.close(fd)


def test_a_line_longer_than_the_buffer_is_written_whole(reader: Reader, reactor: Reactor) -> None:
    writer = LineWriter(reader.fd)
    writer.attach(reactor)
    long = "y" * (2 * BUFFER_BYTES) + "\n"
    writer.write(long)
    received = bytearray()

    def read_on() -> bool:
        received.extend(reader.read())
        return received.endswith(b"\n")

    run_until(reactor, read_on)
    assert re.fullmatch(rb"y+\r?\n", received)
    assert len(received.strip()) == len(long) - 1
    writer.detach()
    writer.close()
