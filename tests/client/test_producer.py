"""Promises of Producer and AsyncProducer against real collators that come and go, and of the logging handler."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_client import (
    AsyncIndex,
    AsyncProducer,
    FramingError,
    Index,
    IndexFailed,
    Producer,
    ProducerDiverged,
    ProducerFull,
    ProducerRefused,
    Receipt,
    TailsrvError,
    TailsrvHandler,
    UsageError,
)
from tests.support.streams import Peer, StreamUnderTest, lines, send_lines, unused_address
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def silent(sock: socket.socket) -> None:
    """A collator that greets and never acknowledges."""
    sock.sendall(b"0 0\n")
    while sock.recv(1 << 16):
        pass


def test_every_receipt_says_where_its_message_stands(stream: StreamUnderTest) -> None:
    with Producer(stream.acks, "a") as one, Producer(stream.acks, "b") as two:
        receipts = []
        for number in range(2000):
            payload = b"%d" % number
            receipts.append((payload, (one, two)[number % 2].send(payload)))
        places = [(payload, receipt.result(30)) for payload, receipt in receipts]
    content = stream.content()
    for payload, offset in places:
        assert offset is not None
        assert content[offset : offset + len(payload) + 1] == payload + b"\n"
    assert len({offset for _, offset in places}) == 2000


def test_a_receipt_calls_back_and_can_be_waited_for(stream: StreamUnderTest) -> None:
    called: list[int | None] = []
    with Producer(stream.acks, "a") as producer:
        receipt = producer.send(b"x")
        receipt.add_done_callback(lambda receipt: called.append(receipt.offset))
        producer.flush(30)
        assert receipt.done()
        assert receipt.exception(0) is None
        receipt.add_done_callback(lambda receipt: called.append(receipt.offset))
    assert called == [0, 0]


def test_a_receipt_is_a_future_for_those_who_know_futures(stream: StreamUnderTest) -> None:
    async def awaited(receipt: Receipt) -> int | None:
        return await asyncio.wrap_future(receipt)

    with Producer(stream.acks, "n") as producer:
        receipts = [producer.send(b"%04d" % number) for number in range(1000)]
        done, left = concurrent.futures.wait(receipts, PATIENCE)
        assert (len(done), left) == (1000, set())
        assert {receipt.result() for receipt in done} == {5 * number for number in range(1000)}
        more = [producer.send(b"more") for _ in range(100)]
        assert set(concurrent.futures.as_completed(more, PATIENCE)) == set(more)
        assert asyncio.run(awaited(producer.send(b"last"))) == 5 * 1100
        receipt = producer.send(b"on its way")
        assert not receipt.cancel()
        assert receipt.result(PATIENCE) == 5 * 1101


def test_a_receipt_of_a_producer_that_fails_tells_those_who_wait_in_any_way() -> None:
    async def awaited(receipt: Receipt) -> None:
        closing = asyncio.get_running_loop().call_later(0.1, producer.close)
        with pytest.raises(TailsrvError, match="closed"):
            await asyncio.wrap_future(receipt)
        closing.cancel()

    producer = Producer(unused_address(), "n")
    receipt = producer.send(b"x")
    assert concurrent.futures.wait([receipt], 0.05).not_done == {receipt}
    asyncio.run(awaited(receipt))
    assert isinstance(receipt.exception(), TailsrvError)


@pytest.mark.parametrize("payload", ["text", 5, None, ["x"]])
@pytest.mark.parametrize("framing", ["newline", "u32be", "varint"])
def test_what_is_not_bytes_is_refused_in_plain_words(payload: Any, framing: str) -> None:
    producer = Producer(unused_address(), "n", framing=framing)
    with pytest.raises(TypeError, match=f"a message is bytes, not {type(payload).__name__}"):
        producer.send(payload)
    assert producer.in_flight == 0
    producer.close()

    async def awaited() -> None:
        asynchronous = AsyncProducer(unused_address(), "n", framing=framing)
        with pytest.raises(TypeError, match=f"a message is bytes, not {type(payload).__name__}"):
            await asynchronous.send(payload)
        await asynchronous.close()

    asyncio.run(awaited())


@pytest.mark.parametrize("kills", [5])
def test_nothing_is_lost_or_twice_through_the_deaths_of_the_collator(stream: StreamUnderTest, kills: int) -> None:
    with Producer(stream.acks, "a") as producer:
        for turn in range(kills):
            send_lines(producer, turn * 2000, turn * 2000 + 2000)
            if turn % 2:
                producer.flush(30)
            stream.kill("tailsrv-collate", signal.SIGKILL)
            assert stream.acks
        producer.flush(30)
    assert stream.content() == lines(0, kills * 2000)


def test_a_new_producer_of_the_same_name_goes_on_behind_the_old_one(stream: StreamUnderTest) -> None:
    for turn in range(3):
        with Producer(stream.acks, "a") as producer:
            send_lines(producer, turn * 10, turn * 10 + 10)
    assert stream.content() == lines(0, 30)


SPOOLING = """
import sys
from tailsrv_client import Producer
producer = Producer(sys.argv[1], "a", spool=sys.argv[2])
number = int(sys.argv[3])
while True:
    producer.send(b"line %d" % number)
    number += 1
    print(number, flush=True)
"""


def test_with_a_spool_what_was_sent_outlives_the_producers_death(stream: StreamUnderTest, tmp_path: Path) -> None:
    """Killed again and again, with a collator and without: each line once, in order."""
    number = 0
    for turn in range(6):
        address = stream.acks if turn % 2 else unused_address()
        with subprocess.Popen(
            [sys.executable, "-c", SPOOLING, address, str(tmp_path / "spool"), str(number)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            for _ in range(200):
                number = int(process.stdout.readline())
            process.kill()
            # It may have sent one more than it could tell of; the next one sends that again, as another message.
            rest = process.stdout.read().split(b"\n")
        number = int(rest[-2]) if len(rest) > 1 else number
    with Producer(stream.acks, "a", spool=str(tmp_path / "spool")) as producer:
        producer.flush(30)
        assert producer.in_flight == 0
    found = stream.content().splitlines()
    once = [line for line, before in zip(found, [b"", *found], strict=False) if line != before]
    assert once[:number] == [b"line %d" % n for n in range(number)]
    assert once[number:] in ([], [b"line %d" % number])
    assert len(found) <= number + 6, "one untold message for each kill at most"


def test_send_waits_for_room_and_says_so_when_there_is_none() -> None:
    with Peer(silent) as collator:
        producer = Producer(collator.address, "a", max_in_flight_bytes=100)
        producer.send(b"x" * 98)
        begin = time.monotonic()
        with pytest.raises(ProducerFull):
            producer.send(b"y", timeout=0.2)
        assert 0.2 <= time.monotonic() - begin < 5
        with pytest.raises(TimeoutError):
            producer.flush(0)
        assert producer.close() == 99


def test_a_message_larger_than_the_bound_is_sent_alone(stream: StreamUnderTest) -> None:
    with Producer(stream.acks, "a", max_in_flight_bytes=10) as producer:
        for size in (100, 200):
            producer.send(b"x" * size)
    assert stream.content() == b"x" * 100 + b"\n" + b"x" * 200 + b"\n"


def test_what_a_closed_producer_still_held_raises_from_its_receipts() -> None:
    producer = Producer(unused_address(), "a")
    receipt = producer.send(b"x")
    assert producer.close() == 2
    with pytest.raises(TailsrvError, match="before the message was acknowledged"):
        receipt.result(1)
    with pytest.raises(TailsrvError, match="closed"):
        producer.send(b"y")


def test_an_exception_in_the_block_does_not_wait_for_a_collator_that_is_not_there() -> None:
    def fail() -> None:
        with Producer(unused_address(), "a") as producer:
            producer.send(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_collator_that_lost_what_it_acknowledged_ends_the_producer(stream: StreamUnderTest) -> None:
    producer = Producer(stream.acks, "a")
    send_lines(producer, 0, 10)
    producer.flush(30)
    stream.kill("tailsrv-collate")
    for name in os.listdir(stream.path.parent):
        (stream.path.parent / name).unlink()
    assert stream.acks
    with pytest.raises(ProducerDiverged):
        producer.send(b"more").result(30)
    with pytest.raises(ProducerDiverged):
        producer.send(b"even more")
    producer.close()


def test_the_collators_error_line_is_the_error(stream: StreamUnderTest) -> None:
    producer = Producer(stream.acks, "a", max_message_bytes=4 << 20)
    fine, receipt = producer.send(b"fine"), producer.send(b"x" * (2 << 20))
    assert fine.result(30) == 0
    with pytest.raises(ProducerRefused):
        receipt.result(30)
    with pytest.raises(ProducerRefused):
        producer.flush()
    producer.close()
    assert stream.content() == b"fine\n"


def test_what_cannot_be_framed_or_named_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    with Peer(silent) as collator:
        producer = Producer(collator.address, "a")
        with pytest.raises(FramingError):
            producer.send(b"two\nlines")
        assert producer.in_flight == 0
        producer.close()
    for arguments in ({"name": "a b"}, {"name": "", "spool": str(tmp_path / "spool")}):
        with pytest.raises(UsageError):
            Producer("127.0.0.1:1", **arguments)  # type: ignore[arg-type]  # a test of what is wrong


def test_many_threads_share_a_producer(stream: StreamUnderTest) -> None:
    with Producer(stream.acks, "a", max_in_flight_bytes=1000) as producer:
        threads = [threading.Thread(target=send_lines, args=(producer, n * 500, n * 500 + 500)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(stream.content().splitlines()) == sorted(lines(0, 2000).splitlines())


# --- asyncio


def test_awaited_every_receipt_says_where_its_message_stands_through_a_death_of_the_collator(
    stream: StreamUnderTest,
) -> None:
    async def scenario() -> list[int | None]:
        async with AsyncProducer(stream.acks, "a") as producer:
            receipts = [await producer.send(b"line %d" % number) for number in range(1000)]
            await producer.flush()
            await asyncio.to_thread(stream.kill, "tailsrv-collate")
            receipts += [await producer.send(b"line %d" % number) for number in range(1000, 2000)]
            await asyncio.to_thread(lambda: stream.acks)
            return list(await asyncio.gather(*receipts))

    places = asyncio.run(scenario())
    content = stream.content()
    assert content == lines(0, 2000)
    assert all(
        place is not None and content[place:].startswith(b"line %d\n" % number) for number, place in enumerate(places)
    )


def test_awaited_send_waits_for_room(stream: StreamUnderTest) -> None:
    async def scenario() -> None:
        with Peer(silent) as collator:
            producer = AsyncProducer(collator.address, "a", max_in_flight_bytes=10)
            await producer.send(b"x" * 9)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(producer.send(b"y"), 0.1)
            await producer.close()
        async with AsyncProducer(stream.acks, "a", max_in_flight_bytes=100) as producer:
            for number in range(100):
                await producer.send(b"line %d" % number)

    asyncio.run(scenario())
    assert stream.content() == lines(0, 100)


# --- the index


def test_the_index_answers_one_by_one_and_many_at_once(stream: StreamUnderTest) -> None:
    stream.append(lines(0, 3000))
    with Index([unused_address(), stream.index]) as index:
        wait_until(lambda: index.count() == 3000)
        places = list(index.offsets_of(range(3001)))
        assert places[:3] == [0, 7, 14]
        assert places[-1] == len(lines(0, 3000))
        assert index.last(1) == places[-2]
        assert index.last(10_000) == 0
        assert (index.message_holding(8).number, index.entry(1).length) == (1, 7)
        assert index.at_time("2020-01-01T00:00:00Z").number == 0
        with pytest.raises(IndexFailed, match="beyond"):
            index.offset_of(3001)
        assert index.offset_of(1) == 7, "an error ends no connection"
        stream.kill("tailsrv-index")
        assert stream.index
        assert index.offset_of(2) == 14


def count(address: str) -> int:
    with Index(address) as index:
        return index.count()


def test_awaited_look_ups_share_a_connection(stream: StreamUnderTest) -> None:
    stream.append(lines(0, 1000))

    async def scenario() -> None:
        async with AsyncIndex(stream.index) as index:
            await asyncio.to_thread(wait_until, lambda: count(stream.index) == 1000)
            places = await asyncio.gather(*(index.offset_of(number) for number in range(1000)))
            assert places[:3] == [0, 7, 14]
            assert await index.last(1) == places[-1]
            assert (await index.message_holding(8)).number == 1
            assert (await index.at_time(0)).number == 0
            with pytest.raises(IndexFailed):
                await index.offset_of(10**9)
            await asyncio.to_thread(stream.kill, "tailsrv-index")
            await asyncio.to_thread(lambda: stream.index)
            assert await index.offset_of(2) == 14

    asyncio.run(scenario())


def test_an_index_that_is_not_there_is_an_os_error() -> None:
    with Index(unused_address()) as index, pytest.raises(ConnectionRefusedError):
        index.count()


# --- logging


def logger_of(handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger("app")  # noqa: LOG001 - one that no other test shares
    logger.addHandler(handler)
    return logger


def test_log_records_are_json_lines_with_all_that_they_carry(stream: StreamUnderTest) -> None:
    handler = TailsrvHandler(stream.acks, "web-1")
    logger = logger_of(handler)
    logger.warning("hello %s\n", "wörld", extra={"user": 7, "odd": object()})
    logger.error("failed", exc_info=ZeroDivisionError("division"))
    handler.flush()
    handler.close()
    first, second = map(json.loads, stream.content().splitlines())
    assert (first["level"], first["logger"], first["message"], first["user"]) == ("WARNING", "app", "hello wörld\n", 7)
    assert first["odd"].startswith("<object")
    assert "ZeroDivisionError" in second["exception"]


def test_formatted_records_are_one_line_each(stream: StreamUnderTest) -> None:
    handler = TailsrvHandler(stream.acks, formatter=logging.Formatter("%(levelname)s %(message)s"))
    logger_of(handler).info("two\nlines")
    handler.close()
    assert stream.content() == b"INFO two\\nlines\n"


def test_it_never_blocks_longer_than_asked_and_tells_what_it_dropped() -> None:
    """No room: dropped. Room again: told first."""
    got: list[bytes] = []
    resume = threading.Event()

    def serve(sock: socket.socket) -> None:
        assert sock.recv(2) == b"\r\n"  # the anonymous name
        sock.sendall(b"0 0\n")
        got.append(sock.recv(1 << 16))
        resume.wait(30)
        sock.sendall(b"%d %d\n" % (len(got[0]), len(got[0])))
        while data := sock.recv(1 << 16):
            got.append(data)

    with Peer(serve) as collator:
        handler = TailsrvHandler(
            collator.address, formatter=logging.Formatter("%(message)s"), max_in_flight_bytes=200, close_seconds=0.1
        )
        logger = logger_of(handler)
        logger.info("a" * 190)
        wait_until(lambda: bool(got))
        begin = time.monotonic()
        for _ in range(50):
            logger.info("b" * 100)
        assert time.monotonic() - begin < 1
        assert handler.dropped == 50
        resume.set()
        wait_until(lambda: handler._producer is not None and handler._producer.in_flight == 0)
        logger.info("c")
        wait_until(lambda: b"c\n" in b"".join(got))
        assert b"".join(got[1:]) == b"50 log records were dropped: there was no room for them\nc\n"
        assert handler.dropped == 0
        begin = time.monotonic()
        handler.close()
        assert time.monotonic() - begin < 5


def test_what_is_lost_at_the_end_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    handler = TailsrvHandler(unused_address(), close_seconds=0.0)
    logger_of(handler).info("x")
    handler.close()
    assert "more bytes not acknowledged" in capsys.readouterr().err


def test_a_program_that_logs_ends_in_time_though_no_collator_is_there() -> None:
    script = (
        "import logging, sys; from tailsrv_client import TailsrvHandler;"
        "logging.getLogger().addHandler(TailsrvHandler(sys.argv[1], close_seconds=0.2)); logging.warning('x')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, unused_address()], capture_output=True, timeout=20, check=True, text=True
    )
    assert "not acknowledged" in ended.stderr
