"""A consumer whose checkpoint can't be written reads on, says so once, and writes it as soon as it can."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tailsrv_client import AsyncConsumer, Consumer, Timeouts, checkpoint
from tailsrv_client.durable_files import replace
from tests.support.streams import CAT, StreamUnderTest, lines, run, started
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Are what these tests look at, whatever other tests have silenced."""
    caplog.set_level(logging.WARNING, "tailsrv_client")


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 100))
        yield stream


class Disk:
    """Where checkpoints go: full, slow, or neither."""

    def __init__(self) -> None:
        self.error = 0
        self.seconds = 0.0
        self.writes = 0

    def replace(self, path: str, content: bytes) -> int:
        self.writes += 1
        time.sleep(self.seconds)
        if self.error:
            raise OSError(self.error, os.strerror(self.error), path)
        return replace(path, content)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(checkpoint, "replace", disk.replace)
    return disk


def offset_of(path: Path) -> int:
    return int(json.loads(path.read_bytes())["offset"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS])
def test_reading_goes_on_and_the_checkpoint_is_written_when_there_is_room(
    stream: StreamUnderTest, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    path = tmp_path / "checkpoint"
    disk.error = code
    with Consumer(stream.broadcast, checkpoint=str(path), checkpoint_messages=1, until="count:150") as consumer:
        messages = iter(consumer)
        for _ in range(100):
            next(messages)
        assert isinstance(consumer.unsaved, OSError)
        assert disk.writes < 5, "not once for each message"
        with pytest.raises(OSError, match="checkpoint"):
            consumer.save()
        assert caplog.text.count("cannot write checkpoint") == 1
        disk.error = 0
        reader = threading.Thread(target=lambda: next(messages))
        reader.start()
        wait_until(lambda: consumer.unsaved is None, "it is retried while nothing comes")
        assert offset_of(path) == len(lines(0, 100))
        assert "written again" in caplog.text
        stream.append(lines(100, 150))
        reader.join()
        list(messages)
    assert offset_of(path) == len(lines(0, 150))


def test_the_end_of_a_loop_raises_nothing_for_a_checkpoint_and_says_what_it_says(
    stream: StreamUnderTest, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint"
    consumer = Consumer(stream.broadcast, checkpoint=str(path), checkpoint_seconds=None, until="now")
    with consumer:
        messages = iter(consumer)
        next(messages)
        next(messages)
        consumer.save()
        disk.error = errno.ENOSPC
        list(messages)
    assert f"it is at byte {len(lines(0, 2))}" in caplog.text
    assert consumer.unsaved is not None
    assert offset_of(path) == len(lines(0, 2))
    disk.error = 0
    with Consumer(stream.broadcast, checkpoint=str(path), until="now") as again:
        assert next(iter(again)).payload == b"line 2"


def test_an_exception_in_the_loop_is_not_hidden_by_a_full_disk(
    stream: StreamUnderTest, tmp_path: Path, disk: Disk
) -> None:
    disk.error = errno.ENOSPC

    def fail() -> None:
        with Consumer(stream.broadcast, checkpoint=str(tmp_path / "checkpoint")) as consumer:
            for _ in consumer:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_awaited_a_checkpoint_that_takes_time_does_not_hold_the_loop(
    stream: StreamUnderTest, tmp_path: Path, disk: Disk
) -> None:
    """Nor does one that can't be written end it."""
    path = tmp_path / "checkpoint"
    longest = 0.0

    async def scenario() -> None:
        ended = asyncio.Event()

        async def tick() -> None:
            nonlocal longest
            while not ended.is_set():
                begin = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - begin)

        ticking = asyncio.create_task(tick())
        async with AsyncConsumer(
            stream.broadcast, checkpoint=str(path), checkpoint_messages=50, until="now"
        ) as consumer:
            taken = 0
            async for _ in consumer:
                taken += 1
        ended.set()
        await ticking
        assert taken == 100

    disk.seconds = 1.0
    disk.error = errno.ENOSPC
    asyncio.run(scenario())
    disk.error = 0
    asyncio.run(scenario())
    assert disk.writes >= 4
    assert longest < 0.9
    assert offset_of(path) == len(lines(0, 100))


def no_files() -> None:
    """From here on no file may have a byte: EFBIG, which is as final as a full disk while it lasts."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_cat_prints_everything_and_exits_1_when_its_last_checkpoint_was_not_written(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    assert run([*CAT, stream.broadcast, "--checkpoint", str(path), "--count", "1"]).stdout == lines(0, 1)
    ended = run([*CAT, stream.broadcast, "--checkpoint", str(path), "--until", "now"], preexec_fn=no_files)
    assert ended.stdout == lines(1, 100)
    assert ended.returncode == 1
    said = ended.stderr.decode().splitlines()[-1]
    assert str(path) in said
    assert "the next run prints the messages since the one before it again" in said
    assert offset_of(path) == len(lines(0, 1))


def test_cat_that_is_stopped_says_so_too_and_dies_of_the_signal(stream: StreamUnderTest, tmp_path: Path) -> None:
    command = [*CAT, stream.broadcast, "--checkpoint", str(tmp_path / "checkpoint")]
    with started(command, preexec_fn=no_files) as cat:
        assert cat.stdout.read(len(lines(0, 100))) == lines(0, 100)
        cat.send_signal(signal.SIGTERM)
        assert cat.wait(PATIENCE) == -signal.SIGTERM
        assert b"the next run prints the messages since the one before it again" in cat.stderr.read()


def test_a_stream_that_is_shorter_than_the_checkpoint_is_reported_once(
    stream: StreamUnderTest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    path = str(tmp_path / "checkpoint")
    with Consumer(stream.broadcast, checkpoint=path, until="now") as consumer:
        list(consumer)
    stream.path.write_bytes(lines(0, 10))
    consumer = Consumer(stream.broadcast, checkpoint=path, timeouts=Timeouts(check=0.1))
    timer = threading.Timer(1.5, consumer.stop)
    timer.start()
    with consumer:
        assert not list(consumer)
    timer.join()
    assert caplog.text.count("shorter than what was read") == 1
