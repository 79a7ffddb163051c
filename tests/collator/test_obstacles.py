"""The collator waits for descriptors, threads and disk space: it loses nothing, does not end, and resumes by itself."""

from __future__ import annotations

import errno
import os
import resource
import threading
from typing import TYPE_CHECKING

import pytest

from collator.obstacles import obstacle
from collator.workers import Worker
from tailsrv_runtime.reactor import Reactor
from tests.support.collators import Producer, collate, wait_committed
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import Daemon


def allow_descriptors(collator: Daemon, count: int) -> None:
    """Let the collator open descriptors below `count` only; those that it has it keeps."""
    resource.prlimit(collator.pid, resource.RLIMIT_NOFILE, (count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def send_one_by_one(producer: Producer, count: int, told: int = 0) -> int:
    """Send messages of two bytes, a commit each; what is acknowledged then."""
    for _ in range(count):
        producer.send(b"x\n")
        told += 2
        assert producer.told()[0] == told
    return told


def test_a_journal_that_has_grown_is_compacted_as_soon_as_there_are_descriptors(tmp_path: Path) -> None:
    path, journal = tmp_path / "stream", tmp_path / "stream.producers"
    with collate(path, "--sync", "never") as collator:
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        first = journal.stat().st_ino
        allow_descriptors(collator, 5)
        told = send_one_by_one(producer, 17_000)
        paused = collator.wait_log("journal compaction paused")
        assert "LimitNOFILE=" in paused["advice"]
        told = send_one_by_one(producer, 50, told)
        assert journal.stat().st_ino == first
        allow_descriptors(collator, 1000)
        collator.wait_log("journal compaction resumed")
        send_one_by_one(producer, 1, told)
        wait_until(lambda: journal.stat().st_ino != first, "the journal begins again")
        assert sum(event["event"] == "journal compaction paused" for event in collator.events()) == 1
        collator.kill()
    with collate(path, "--sync", "never") as collator:
        assert Producer(collator, "a").told() == (told + 2, told + 2)


def test_foreign_bytes_are_rescued_as_soon_as_a_descriptor_is_free(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        producer, other = Producer(collator, "a"), collator.connect()
        assert producer.told() == (0, 0)
        allow_descriptors(collator, 5)
        with path.open("ab") as file:
            file.write(b"by hand\n")
        producer.send(b"mine\n")
        paused = collator.wait_log("writing paused")
        assert "LimitNOFILE=" in paused["advice"]
        other.sendall(b"other\n")
        other.close()
        producer.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):  # nothing is acknowledged before they are out of the way
            producer.line()
        producer.sock.settimeout(30)
        allow_descriptors(collator, 1000)
        assert producer.told() == (5, 5)
        assert wait_committed(path, 11) == b"mine\nother\n"
        collator.wait_log("writing resumed")
        assert collator.stop() == 0
    (rescued,) = tmp_path.glob("stream.rescued-*")
    assert rescued.read_bytes() == b"by hand\n"


def test_a_thread_that_cannot_be_started_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reactor = Reactor()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start") as error:
        Worker(reactor, "file")
    met = obstacle(error.value)
    assert met is not None
    assert "TasksMax=" in met.advice
    reactor.close()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EDQUOT, "free some disk space"),
        (errno.EFBIG, "LimitFSIZE="),
        (errno.EMFILE, "LimitNOFILE="),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "memory"),
    ],
)
def test_each_obstacle_names_its_cause_and_what_to_do(number: int, advice: str) -> None:
    met = obstacle(OSError(number, os.strerror(number)))
    assert met is not None
    assert met.error == os.strerror(number)
    assert advice in met.advice
    assert ("free some disk space" in met.advice) == (number in {errno.ENOSPC, errno.EDQUOT})


def test_a_failing_disk_is_not_an_obstacle_that_passes() -> None:
    assert obstacle(OSError(errno.EIO, "Input/output error")) is None
    assert obstacle(OSError(errno.EROFS, "Read-only file system")) is None
