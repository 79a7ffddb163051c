"""The collator in the loop of a test: recovery, shortages of watches and of memory, and ends during a sync."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from collator import batch_builder, committer, pipeline, recovery, startup
from collator.diskwriter import DiskWriter
from collator.options import Options, parse_sync
from collator.server import Collator
from tailsrv_formats.addresses import parse_address
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import ShortageError
from tailsrv_runtime.watches import Watches
from tests.support.collators import Producer, collate
from tests.support.logs import RecordedLog
from tests.support.loops import turn_until
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tailsrv_runtime.reactor import Reactor


class Looped:
    """A collator in the test's own loop."""

    def __init__(self, reactor: Reactor, directory: Path, sync: str) -> None:
        self.reactor = reactor
        self.path = directory / "stream"
        self.log = RecordedLog()
        self._peers: list[socket.socket] = []
        raw, acknowledged = (parse_address(f"unix:{directory}/{name}") for name in ("raw", "ack"))
        options = Options(
            file=str(self.path), listen=(raw,), ack_listen=(acknowledged,), sync=parse_sync(sync), metrics=None
        )
        self.ready = self._closed = False
        self.collator = Collator(reactor, options, self.log)

    def begin(self) -> None:
        self.collator.bind(self._ready)

    def _ready(self) -> None:
        self.ready = True

    def turn_until(self, condition: Any) -> None:
        turn_until(self.reactor, condition, lambda: self.log.events)

    def start(self) -> None:
        self.begin()
        self.turn_until(lambda: self.ready)

    def connect(self, port: str = "raw") -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(PATIENCE)
        peer.connect(str(self.path.with_name(port)))
        self._peers.append(peer)
        return peer

    def send(self, data: bytes) -> None:
        with self.connect() as peer:
            peer.sendall(data)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        if not self._closed:
            self._closed = True
            self.collator.close()


@pytest.fixture
def looped(request: pytest.FixtureRequest, reactor: Reactor, tmp_path: Path) -> Iterator[Looped]:
    """Its parameter is --sync."""
    made = Looped(reactor, tmp_path, getattr(request, "param", "always"))
    yield made
    made.close()


def test_a_stream_that_is_moved_during_recovery_gets_what_was_queued(
    looped: Looped, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, moved = recovery.recover, looped.path.with_name("moved")

    def recover(*arguments: Any, **named: Any) -> Any:
        looped.send(b"sent during the recovery\n")  # by a producer that goes while nobody accepts yet
        recovered = honest(*arguments, **named)
        looped.path.rename(moved)
        return recovered

    monkeypatch.setattr(startup, "recover", recover)
    looped.begin()
    looped.reactor.run()  # until it stops by itself
    looped.close()
    assert moved.read_bytes() == b"sent during the recovery\n"
    assert looped.log.of("stream moved")
    assert not looped.path.with_name("raw").exists()


def test_a_journal_that_is_deleted_while_watches_are_used_up_is_written_again_once_there_are_some(
    looped: Looped, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, used_up = Watches.add, False

    def short(self: Watches, path: str, events: int) -> int:
        if used_up:
            raise ShortageError(OSError(errno.ENOSPC, "", path), "out of inotify watches", "raise it")
        return add(self, path, events)

    monkeypatch.setattr(Watches, "add", short)
    looped.start()
    journal = looped.path.with_name("stream.producers")
    used_up = True
    journal.unlink()
    looped.turn_until(lambda: looped.log.of("sidecar file rewritten"))
    journal.unlink()  # which nobody notices
    used_up = False
    looped.turn_until(lambda: len(looped.log.of("sidecar file rewritten")) == 2)
    assert journal.exists()


@pytest.mark.parametrize("looped", ["interval:1"], indirect=True)
def test_a_hung_interval_sync_makes_the_collator_unhealthy(looped: Looped, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    def hang(_: DiskWriter) -> None:
        goes_on.wait(PATIENCE)

    monkeypatch.setattr(committer, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(DiskWriter, "sync_now", hang)
    looped.start()
    looped.send(b"a line\n")
    looped.reactor.call_later(0.3, lambda: None)  # a round to look in
    looped.turn_until(lambda: looped.collator.unhealthy() is not None)
    assert "has not answered for" in str(looped.collator.unhealthy())
    goes_on.set()
    looped.turn_until(lambda: looped.collator.unhealthy() is None)


@pytest.mark.parametrize("looped", ["always", "interval:1"], indirect=True)
def test_a_shutdown_during_a_hung_sync_raises_nothing_and_touches_no_file(
    looped: Looped, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on, ended = (threading.Event() for _ in range(3))
    raised: list[object] = []
    honest = DiskWriter.file_durable

    def hang(self: DiskWriter) -> None:
        hangs.set()
        looped.reactor.post(lambda: None)  # a round to look in
        goes_on.wait(PATIENCE)
        try:
            honest(self)
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    monkeypatch.setattr(DiskWriter, "file_durable", hang)
    monkeypatch.setattr(threading, "excepthook", raised.append)
    looped.start()
    looped.send(b"a line\n")
    looped.turn_until(hangs.is_set)
    looped.path.unlink()
    with pytest.raises(FatalError, match="was deleted while the collator wrote it"):
        looped.turn_until(lambda: False)
    looped.close()
    looped.reactor.close()
    workers = [thread for thread in threading.enumerate() if thread.daemon and thread.name.startswith("collate")]
    goes_on.set()
    assert ended.wait(PATIENCE)
    for thread in workers:
        thread.join(0.2)
    assert raised == []


def pipeline_of(looped: Looped) -> pipeline.Pipeline:
    stage = looped.collator._stage
    assert isinstance(stage, pipeline.Pipeline)
    return stage


def test_a_parked_producer_that_is_closed_leaves_the_queue(looped: Looped) -> None:
    looped.start()
    scheduler = pipeline_of(looped)._scheduler
    looped.reactor._after_round = ()  # which would open it again
    scheduler.closed = True  # as while nothing can be written
    port = pipeline_of(looped).acknowledged
    for number in range(20):
        looped.connect("ack").sendall(b"ada\nx\n")
        looped.turn_until(lambda: port.events.rejected["superseded"] == number and scheduler.crowded)  # noqa: B023
    assert len(scheduler._parked) == 1


def test_memory_that_is_used_up_pauses_the_reading_and_nothing_else(
    looped: Looped, monkeypatch: pytest.MonkeyPatch
) -> None:
    looped.start()
    honest, used_up = batch_builder._Chunk.__init__, True

    def short(self: Any, size: int) -> None:
        if used_up:
            raise MemoryError
        honest(self, size)

    monkeypatch.setattr(batch_builder._Chunk, "__init__", short)
    for number in range(2):
        looped.send(b"line %d\n" % number)
    looped.turn_until(lambda: looped.log.of("reading from producers paused"))
    assert "Cannot allocate memory" in str(looped.collator.unhealthy())
    used_up = False
    looped.turn_until(lambda: looped.path.read_bytes() == b"line 0\nline 1\n")
    looped.turn_until(lambda: looped.collator.unhealthy() is None)
    assert len(looped.log.of("reading from producers paused")) == 1
    assert len(looped.log.of("reading from producers resumed")) == 1


@pytest.mark.parametrize(("failures", "committed"), [(3, True), (1 << 30, False)], ids=["for a while", "for good"])
def test_a_shutdown_without_memory_waits_for_what_was_sent_and_not_for_ever(
    looped: Looped, monkeypatch: pytest.MonkeyPatch, failures: int, committed: bool
) -> None:
    looped.start()
    honest, left = batch_builder._Chunk.__init__, failures

    def short(self: Any, size: int) -> None:
        nonlocal left
        if left:
            left -= 1
            raise MemoryError
        honest(self, size)

    monkeypatch.setattr(pipeline, "DRAIN_SECONDS", 2.0)
    monkeypatch.setattr(batch_builder._Chunk, "__init__", short)
    for number in range(2):
        looped.send(b"line %d\n" % number)
    looped.collator.stop()
    looped.reactor.run()
    assert sorted(looped.path.read_bytes().splitlines()) == ([b"line 0", b"line 1"] if committed else [])
    assert bool(looped.log.of("stopped out of memory")) is not committed


def test_a_message_too_large_for_the_memory_closes_its_producer_alone(tmp_path: Path) -> None:
    """The limit of the process is what it has, and little more."""
    path = tmp_path / "stream"
    with collate(path, "--max-message-bytes", str(1 << 28), "--sync", "never") as collator:
        other = Producer(collator, "other")
        other.send(b"before\n")
        other.until(7)
        has = int(collator.status("VmSize").split()[0]) * 1024
        resource.prlimit(collator.pid, resource.RLIMIT_AS, (has + (24 << 20), has + (24 << 20)))
        large = Producer(collator, "large")
        with contextlib.suppress(OSError):
            for _ in range(128):
                large.send(b"x" * (1 << 20))
        assert b"error: busy, no memory for this message" in large.rest()
        other.send(b"after\n")
        other.until(13)
        assert collator.process.poll() is None
        assert path.read_bytes() == b"before\nafter\n"
