"""Promises of Producer and AsyncProducer about their spool: slow disks, full disks, damaged files, ends."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_client import AsyncProducer, CheckpointError, Producer
from tailsrv_client import spool as module
from tailsrv_client.spool import Spool
from tailsrv_formats.framing import make_framing
from tests.support.streams import PUT, StreamUnderTest, lines, run, send_lines, unsent, unused_address
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_closing_after_everything_was_acknowledged_raises_nothing_on_a_full_disk(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And lets go of the spool's lock."""
    path = str(tmp_path / "spool")
    with Producer(stream.acks, "a", spool=path) as producer:
        send_lines(producer, 0, 10)
        producer.flush(PATIENCE)
        monkeypatch.setattr(os, "fdatasync", no_space)
        monkeypatch.setattr(os, "rename", no_space)
    monkeypatch.undo()
    with Producer(stream.acks, "a", spool=path) as producer:
        send_lines(producer, 10, 20)
    assert stream.content() == lines(0, 20)


def test_an_anchor_that_can_not_be_made_durable_sends_nothing_until_it_can(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "spool")
    failures: list[int] = []

    def fail(fd: int) -> None:
        failures.append(fd)
        no_space()

    address = stream.acks
    stream.kill("tailsrv-collate")  # nobody answers before the disk is full
    producer = Producer(address, "a", spool=path)
    monkeypatch.setattr(os, "fdatasync", fail)
    assert stream.acks == address
    send_lines(producer, 0, 10)
    wait_until(lambda: len(failures) >= 2 or producer.in_flight == 0)
    assert stream.content() == b""
    monkeypatch.undo()
    producer.flush(PATIENCE)
    producer.close()
    assert stream.content() == lines(0, 10)


def test_send_returns_while_the_spool_is_rewritten_on_a_slow_disk(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewriting waits in its sync until a `send` in another thread has returned."""
    monkeypatch.setattr(module, "COMPACT_BYTES", 10_000)
    path = tmp_path / "spool"
    rewriting, sent = threading.Event(), threading.Event()
    with Producer(stream.acks, "a", spool=str(path)) as producer:
        send_lines(producer, 0, 10)
        producer.flush(PATIENCE)
        sync, waited = os.fdatasync, list[bool]()

        def slow(fd: int) -> None:
            rewriting.set()
            waited.append(sent.wait(PATIENCE))
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", slow)
        send_lines(producer, 10, 2000)
        assert rewriting.wait(PATIENCE)
        send_lines(producer, 2000, 2100)
        sent.set()
        producer.flush(PATIENCE)
        assert all(waited)
    assert stream.content() == lines(0, 2100)


def test_damage_that_is_found_while_sending_ends_the_producer_and_sends_no_wrong_byte(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    """One byte of the file changes after it was opened, before it is read."""
    path = tmp_path / "spool"
    address = unsent(stream, path)
    producer = Producer(address, "a", spool=str(path))
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"X")
    assert stream.acks
    with pytest.raises(CheckpointError, match=f"{path} is damaged at byte"):
        producer.flush(PATIENCE)
    producer.close()
    assert lines(0, 100_000).startswith(stream.content())


def test_a_spool_that_another_process_has_is_one_line_and_exit_1(stream: StreamUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), "a", make_framing("newline"))
    ended = run([*PUT, stream.acks, "--name", "a", "--spool", str(path)], b"x\n")
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
    assert str(path).encode() in ended.stderr
    spool.close()
    (tmp_path / "folder").mkdir()
    ended = run([*PUT, stream.acks, "--name", "a", "--spool", str(tmp_path / "folder")], b"x\n")
    assert ended.returncode in (1, 2)
    assert ended.stderr.count(b"\n") == 1


def test_a_larger_limit_than_the_next_run_has_loses_nothing(stream: StreamUnderTest, tmp_path: Path) -> None:
    """As found: message 11 of 111 had 2 MiB, and the next run began with the default limit."""
    path = str(tmp_path / "spool")
    producer = Producer(unused_address(), "a", spool=path, max_message_bytes=4 << 20)
    sizes = [50] * 10 + [2 << 20] + [50] * 100
    for size in sizes:
        producer.send(b"x" * size)
    producer.close()
    stream.daemon("tailsrv-collate", "--max-message-bytes", str(4 << 20))
    ended = run([*PUT, stream.acks, "--name", "a", "--spool", path], b"")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert [len(line) for line in stream.content().splitlines()] == sizes


# --- asyncio


def calls_of(thread: threading.Thread, found: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is thread:
            found.append(name)
        return function(*arguments, **options)

    return call


def test_the_event_loop_does_no_file_work(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first awaited call to the end, through a rewriting; whatever the disk does then holds up a thread."""
    monkeypatch.setattr(module, "COMPACT_BYTES", 10_000)
    found: list[str] = []

    async def scenario() -> None:
        producer = AsyncProducer(stream.acks, "a", spool=str(tmp_path / "spool"))
        for name in ("pwrite", "pread", "fdatasync", "fsync", "ftruncate", "rename", "open"):
            monkeypatch.setattr(os, name, calls_of(threading.main_thread(), found, name, getattr(os, name)))
        async with producer:
            for begin in range(0, 4000, 1000):
                await asyncio.gather(*(producer.send(b"line %d" % number) for number in range(begin, begin + 1000)))
            await producer.flush()
            await asyncio.sleep(0)

    asyncio.run(scenario())
    monkeypatch.undo()
    assert found == []
    assert stream.content() == lines(0, 4000)
    assert (tmp_path / "spool").stat().st_size < 10_000


def test_the_loop_runs_on_while_a_write_hangs(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with AsyncProducer(stream.acks, "a", spool=str(tmp_path / "spool")) as producer:
            hangs, resume, write = asyncio.Event(), threading.Event(), os.pwrite
            loop = asyncio.get_running_loop()

            def slow(fd: int, data: bytes, offset: int) -> int:
                loop.call_soon_threadsafe(hangs.set)
                assert resume.wait(PATIENCE)
                return write(fd, data, offset)

            monkeypatch.setattr(os, "pwrite", slow)
            sends = [asyncio.create_task(producer.send(b"line %d" % number)) for number in range(10)]
            await hangs.wait()
            assert not any(send.done() for send in sends)
            sends[9].cancel()  # it is being written: it may have been taken, and the others are
            resume.set()
            places = [await (await send) for send in sends[:9]]
            assert places == [7 * number for number in range(9)]

    asyncio.run(scenario())
    assert stream.content() in (lines(0, 9), lines(0, 10))


def test_awaited_a_full_disk_is_an_error_of_each_send_and_passes(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with AsyncProducer(stream.acks, "a", spool=str(tmp_path / "spool")) as producer:
            await producer.send(b"line 0")
            monkeypatch.setattr(os, "pwrite", no_space)
            failed = await asyncio.gather(*(producer.send(b"lost") for _ in range(3)), return_exceptions=True)
            assert [error.errno for error in failed if isinstance(error, OSError)] == [errno.ENOSPC] * 3
            monkeypatch.undo()
            assert await (await producer.send(b"line 1")) == 7

    asyncio.run(scenario())
    assert stream.content() == lines(0, 2)


def test_awaited_what_was_sent_outlives_the_producer(stream: StreamUnderTest, tmp_path: Path) -> None:
    path = str(tmp_path / "spool")

    async def fill() -> None:
        producer = AsyncProducer(unused_address(), "a", spool=path)
        for number in range(100):
            await producer.send(b"line %d" % number)
        await producer.close()
        await producer.close()

    async def resume() -> None:
        async with AsyncProducer(stream.acks, "a", spool=path) as producer:
            await producer.send(b"line 100")

    asyncio.run(fill())
    asyncio.run(resume())
    assert stream.content() == lines(0, 101)


def test_awaited_a_damaged_spool_is_an_error_of_the_first_call(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), "a", make_framing("newline"))
    spool.append(b"one\n")
    spool.append(b"two\n")
    spool.close()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)

    async def scenario() -> None:
        producer = AsyncProducer(unused_address(), "a", spool=str(path))
        for _ in range(2):
            with pytest.raises(CheckpointError, match="damaged at byte"):
                await producer.send(b"x")
        await producer.close()

    asyncio.run(scenario())
    Spool(str(tmp_path / "other"), "a", make_framing("newline")).close()
    assert path.read_bytes() == data
