"""Following and building: the clock, the workers, and streams of any size."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from indexer import follower
from indexer.follower import Follower
from indexer.options import Options
from indexer.verifier import verify
from tailsrv_formats.framing import make_framing
from tailsrv_formats.index_query import Query
from tailsrv_runtime.reactor import Reactor
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.processes import children
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIB = 1 << 30


class Quiet:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str, **_: object) -> None:
        self.events.append(event)

    debug = warning = error = info


class Story:
    """A follower in a loop of its own."""

    def __init__(self, path: Path, framing: str = "newline") -> None:
        self.log = Quiet()
        self.reactor = Reactor()
        options = Options(file=str(path), index=f"{path}.index", framing=framing)
        self.follower = Follower(
            self.reactor,
            options,
            make_framing(framing, 1 << 20),
            self.log,
            on_stale=lambda: None,
            on_progress=lambda _done, _total: None,
        )
        self.fd = os.open(path, os.O_RDONLY)

    def attach(self) -> None:
        self.follower.attach(self.fd, os.fstat(self.fd).st_size)

    def run(self) -> None:
        """Run the loop until all that there is has been read."""

        def stop() -> None:
            if self.follower._is_current():
                self.reactor.stop()

        self.reactor.after_round(stop)
        self.reactor.post(lambda: None)
        self.reactor.run()

    def grow(self) -> None:
        self.follower.advance(os.fstat(self.fd).st_size)

    def close(self) -> None:
        self.follower.close()
        self.reactor.close()
        os.close(self.fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream"


@pytest.fixture
def large(path: Path) -> Iterator[Truth]:
    """A stream that workers build, in numbers that are quickly known."""
    truth = Truth("newline", lines(20000, width=90))
    with path.open("wb") as stream:
        for _ in range(30):
            stream.write(truth.content)
    yield truth
    path.unlink()


def test_times_never_go_back_when_the_clock_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**18, 0, -(10**15)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    path.touch()
    story = Story(path)
    story.attach()
    with path.open("ab", buffering=0) as stream:
        for number in range(20):
            stream.write(b"%099d\n" % number * 100)
            story.grow()
    entries = [story.follower._index_file.entry(position) for position in range(story.follower._index_file.count)]
    assert len(entries) > 40
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
    assert verify(str(path)) == []
    story.close()


def test_where_no_process_can_be_forked_the_loop_builds_alone(
    path: Path, large: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    story = Story(path)
    story.attach()
    story.run()
    assert set(story.log.events) == {"builder processes not started"}
    assert story.follower.answer(Query("count", 1, True)).count == 30 * large.count
    story.close()
    assert verify(str(path)) == []


def test_workers_and_the_loop_make_the_same_index(path: Path, large: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    for alone in (False, True):
        monkeypatch.setattr(follower, "FAR_BYTES", GIB if alone else 16 << 20)
        story = Story(path)
        story.attach()
        story.run()
        assert ("indexed" in story.log.events) is not alone
        story.close()
        index_path = path.with_name("stream.index")
        made.append(index_path.read_bytes())
        index_path.unlink()
    assert len(made[0]) > 30 * large.end // 4200 * 24
    assert made[0] == made[1]


def lives(pid: int) -> bool:
    """Whether it still runs; one that nobody has buried yet does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as status:
            return status.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def endless(path: Path) -> None:
    """A hundred gigabytes of empty messages, on no disk: nobody gets to its end in a test."""
    path.touch()
    os.truncate(path, 100 * GIB)


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("framing", ["nul", "u32be"])
def test_a_hundred_gigabytes_cost_no_time_at_start_and_no_memory(path: Path, framing: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"one\n")
    with index(small) as idle, Asker(idle) as asker:
        assert asker.line("1") == "4"
        least = idle.memory()
    size = 1 if framing == "nul" else 4
    for _ in range(2):
        begin = time.monotonic()
        with index(path, "--framing", framing) as daemon:
            # The bar is half a second on an idle machine; the suite runs on busy ones.
            assert time.monotonic() - begin < 5
            with Asker(daemon) as asker:
                wait_until(lambda: asker.line("5000000") == str(5_000_000 * size), "the first millions are known")
                assert asker.line("1234567") == str(1_234_567 * size)
                assert asker.line("-1").startswith("error: not indexed yet")
            assert daemon.memory() - least < 40 << 20
            assert daemon.stop() == 0


@pytest.mark.usefixtures("endless")
def test_workers_end_with_the_indexer_and_the_indexer_outlives_them(path: Path) -> None:
    with index(path, "--framing", "nul") as daemon:
        first = children(daemon.pid)
        assert first
        os.kill(first[0], signal.SIGKILL)
        daemon.wait_log("indexed")
        with Asker(daemon) as asker:
            assert asker.line("1000") == "1000"
        wait_until(lambda: bool(children(daemon.pid)), "new workers")
        workers = children(daemon.pid)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        wait_until(lambda: not any(map(lives, first + workers)), "they are gone")
