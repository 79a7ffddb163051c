"""Promises of Consumer, with `for` and `async for`, against real broadcasters that come and go."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tailsrv_client import (
    AsyncConsumer,
    CheckpointError,
    Consumer,
    FramingError,
    Message,
    Position,
    StreamDiverged,
    UsageError,
)
from tailsrv_client.protocol.timeouts import Timeouts
from tailsrv_formats.framing import make_framing
from tests.support.daemons import Daemon
from tests.support.streams import Peer, StreamUnderTest, lines, unused_address
from tests.support.waits import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Face(NamedTuple):
    """A consumer, blocking or on asyncio, and a way to get all its messages."""

    consumer: type[Consumer | AsyncConsumer]
    collect: Callable[[Any], list[Message]]


def blocking(consumer: Consumer) -> list[Message]:
    """All messages, with `for`."""
    with consumer:
        return list(consumer)


def awaited(consumer: AsyncConsumer) -> list[Message]:
    """All messages, with `async for`."""

    async def collect() -> list[Message]:
        async with consumer:
            return [message async for message in consumer]

    return asyncio.run(collect())


def in_batches(consumer: Consumer) -> list[Message]:
    """All messages, in lists."""
    with consumer:
        return [message for batch in consumer.batches() for message in batch]


def in_awaited_batches(consumer: AsyncConsumer) -> list[Message]:
    """All messages, in lists, with `async for`."""

    async def collect() -> list[Message]:
        async with consumer:
            return [message async for batch in consumer.batches() for message in batch]

    return asyncio.run(collect())


def polled(consumer: Consumer) -> list[Message]:
    """All messages, as `poll` returns them."""
    found = []
    with consumer:
        while not consumer.finished:
            found += consumer.poll(0.05)
    return found


def polled_awaited(consumer: AsyncConsumer) -> list[Message]:
    """All messages, as the awaited `poll` returns them."""

    async def collect() -> list[Message]:
        found = []
        async with consumer:
            while not consumer.finished:
                found += await consumer.poll(0.05)
        return found

    return asyncio.run(collect())


FACES = pytest.mark.parametrize(
    "face",
    [
        Face(Consumer, blocking),
        Face(AsyncConsumer, awaited),
        Face(Consumer, in_batches),
        Face(AsyncConsumer, in_awaited_batches),
        Face(Consumer, polled),
        Face(AsyncConsumer, polled_awaited),
    ],
    ids=lambda face: face.collect.__name__,
)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 1000))
        yield stream


def payloads(messages: list[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def expected(begin: int, end: int) -> list[bytes]:
    return [b"line %d" % number for number in range(begin, end)]


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamUnderTest]:
    """One that nobody writes to, for all who only read."""
    with StreamUnderTest(tmp_path_factory.mktemp("still") / "s.log") as stream:
        stream.append(lines(0, 1000))
        yield stream


@FACES
def test_every_message_comes_once_with_its_place(still: StreamUnderTest, face: Face) -> None:
    messages = face.collect(face.consumer(still.broadcast, until="now"))
    assert payloads(messages) == expected(0, 1000)
    content = still.content()
    assert all(content[m.offset : m.end] == m.payload + b"\n" for m in messages)


@FACES
@pytest.mark.parametrize(
    ("places", "numbers"),
    [
        (("start", "count:10"), (0, 10)),
        (("message:990", "now"), (990, 1000)),
        (("last:5", "now"), (995, 1000)),
        ((-len(lines(998, 1000)), "now"), (998, 1000)),
        ((len(lines(0, 500)), len(lines(0, 502))), (500, 502)),
        (("message:3", "message:6"), (3, 6)),
        (("message:6", "message:3"), (0, 0)),
        (("start", "message:2"), (0, 2)),
        ((len(lines(0, 500)), "message:502"), (500, 502)),
        (("time:0", "count:1"), (0, 1)),
        (("time:4000000000", "count:0"), (0, 0)),
        (("start", "time:4"), (0, 0)),
        (("end", "now"), (0, 0)),
        (("start", "now"), (0, 1000)),
    ],
)
def test_it_begins_and_ends_where_it_is_told(
    still: StreamUnderTest, face: Face, places: tuple[str | int, str | int], numbers: tuple[int, int]
) -> None:
    start, until = places
    consumer = face.consumer(still.broadcast, start=start, until=until, index=still.index)
    assert payloads(face.collect(consumer)) == expected(*numbers)


def test_until_a_time_to_come_it_follows_and_then_ends(stream: StreamUnderTest) -> None:
    with stream.path.open("ab") as file:
        broadcast, index = stream.broadcast, stream.index  # whose start takes time
        consumer = Consumer(broadcast, start="end", until=f"time:{time.time() + 1.0}", index=index)
        with consumer:
            consumer.check()
            file.write(b"in time\n")
            file.flush()
            assert payloads(list(consumer)) == [b"in time"]


@FACES
def test_it_goes_on_where_it_was_whatever_becomes_of_the_broadcaster(stream: StreamUnderTest, face: Face) -> None:
    address = stream.broadcast
    done = threading.Event()

    def disturb() -> None:
        for number in range(1000, 1005):
            stream.kill("tailsrv")
            stream.append(lines(number, number + 1))
            assert stream.broadcast == address
            wait_until(lambda: bool(stream.daemon("tailsrv").events()))
        done.set()

    thread = threading.Thread(target=disturb)
    thread.start()
    messages = face.collect(face.consumer(address, until="count:1005"))
    thread.join()
    assert payloads(messages) == expected(0, 1005)
    assert [m.offset for m in messages[1:]] == [m.end for m in messages[:-1]]


def test_fail_over_goes_on_at_the_next_address_and_refuses_another_stream(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    """Two broadcasters of the same file, one dies; a third one has another file."""
    other = tmp_path / "other.log"
    other.write_bytes(b"not the same at all\n" * 10_000)
    with (
        Daemon("tailsrv", stream.path, "--listen", "127.0.0.1:0") as second,
        Daemon("tailsrv", other, "--listen", "127.0.0.1:0") as third,
        Consumer([stream.broadcast, second.addresses[0], third.addresses[0]]) as consumer,
    ):
        messages = iter(consumer)
        found = [next(messages).payload for _ in range(1000)]
        stream.kill("tailsrv")
        stream.append(lines(1000, 1001))
        found.append(next(messages).payload)
        assert found == expected(0, 1001)
        position = consumer.position
        second.kill()
        with pytest.raises(StreamDiverged, match=f"byte {position.offset}"):
            next(messages)
        assert consumer.position == position


@FACES
def test_a_shorter_stream_is_left_for_another_address(stream: StreamUnderTest, tmp_path: Path, face: Face) -> None:
    """A mirror that is behind has nothing to say yet: no gap, no jump, no end."""
    behind = tmp_path / "behind.log"
    behind.write_bytes(lines(0, 500))
    with Daemon("tailsrv", behind, "--listen", "127.0.0.1:0") as mirror:
        with Consumer(stream.broadcast, until="now") as first:
            list(first)
            position = first.position
        stream.append(lines(1000, 1001))
        consumer = face.consumer(
            [mirror.addresses[0], stream.broadcast], start=position, until="count:1", timeouts=Timeouts(check=0.2)
        )
        assert payloads(face.collect(consumer)) == expected(1000, 1001)


def test_a_position_of_one_consumer_is_good_for_another(stream: StreamUnderTest) -> None:
    with Consumer(stream.broadcast) as first:
        for message in first:
            if message.payload == b"line 499":
                break
        assert first.position == Position(message.end, first.position.digest)
    with Consumer(stream.broadcast, start=first.position, until="now") as second:
        assert second.position == first.position
        assert payloads(list(second)) == expected(500, 1000)


def test_breaking_out_of_the_loop_loses_nothing(stream: StreamUnderTest) -> None:
    with Consumer(stream.broadcast, until="now") as consumer:
        found = []
        for message in consumer:
            found.append(message.payload)
            if len(found) == 10:
                break
        for batch in consumer.batches():
            found += payloads(batch)
            break
        found += payloads(list(consumer))
    assert found == expected(0, 1000)


def test_a_cancelled_wait_loses_nothing(stream: StreamUnderTest) -> None:
    async def scenario() -> list[bytes]:
        found: list[bytes] = []
        async with AsyncConsumer(stream.broadcast) as consumer:
            messages = aiter(consumer)
            while len(found) < 1000:
                found.append((await anext(messages)).payload)
            for number in range(1000, 1020):
                waiting = asyncio.ensure_future(anext(messages))
                await asyncio.sleep(0)
                stream.append(lines(number, number + 1))
                await asyncio.sleep(number % 5 / 1000)
                waiting.cancel()
                try:
                    found.append((await waiting).payload)
                except asyncio.CancelledError:
                    continue
            async for message in consumer:
                found.append(message.payload)
                if len(found) == 1020:
                    break
        return found

    assert asyncio.run(scenario()) == expected(0, 1020)


@pytest.mark.parametrize("framing", ["nul", "u32be", "varint"])
def test_messages_of_any_framing(tmp_path: Path, framing: str) -> None:
    with StreamUnderTest(tmp_path / "s", framing) as stream:
        codec = make_framing(framing)
        bodies = [b"x" * size for size in (0, 1, 127, 128, 70_000)]
        stream.append(b"".join(map(codec.wrap, bodies)))
        assert payloads(blocking(Consumer(stream.broadcast, until="now", framing=framing))) == bodies


def test_bytes_that_are_no_message_are_an_error_behind_those_that_are(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s", "u32be") as stream:
        stream.append(b"\0\0\0\1a" + b"\xff" * 20)
        with Consumer(stream.broadcast, framing="u32be") as consumer:
            messages = iter(consumer)
            assert next(messages).payload == b"a"
            with pytest.raises(FramingError, match="byte 5"):
                next(messages)


# --- checkpoints


def test_a_checkpoint_goes_on_behind_what_was_taken(stream: StreamUnderTest, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    found: list[bytes] = []
    for _ in range(11):
        with Consumer(stream.broadcast, until="now", checkpoint=checkpoint, numbered=False) as consumer:
            for message in consumer:
                found.append(message.payload)
                if len(found) % 100 == 0:
                    break
    assert found == expected(0, 1000)
    with Consumer(stream.broadcast, checkpoint=checkpoint) as consumer:
        assert (consumer.position.offset, consumer.number) == (len(lines(0, 1000)), 1000)


def test_a_message_whose_handling_failed_comes_again(stream: StreamUnderTest, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint")

    def fail_at_line_7() -> None:
        with Consumer(stream.broadcast, until="now", checkpoint=checkpoint) as consumer:
            for message in consumer:
                if message.payload == b"line 7":
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_line_7()
    with Consumer(stream.broadcast, until="now", checkpoint=checkpoint) as consumer:
        assert consumer.number == 7
        assert next(iter(consumer)).payload == b"line 7"


@pytest.mark.parametrize("every", [1, 3])
def test_it_is_written_as_often_as_asked(stream: StreamUnderTest, tmp_path: Path, every: int) -> None:
    path = tmp_path / "checkpoint"
    with Consumer(
        stream.broadcast, until="count:10", checkpoint=str(path), checkpoint_messages=every, checkpoint_seconds=None
    ) as consumer:
        seen = {path.read_bytes() if path.exists() else b"" for _ in consumer}
        assert len(seen) == len({number // every for number in range(10)})


def test_it_is_written_after_a_time_though_nothing_more_comes(stream: StreamUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    consumer = Consumer(stream.broadcast, checkpoint=str(path), checkpoint_seconds=0.1)

    def consume() -> None:
        with consumer:
            for _ in consumer:
                pass

    thread = threading.Thread(target=consume)
    thread.start()
    wait_until(lambda: path.exists() and b'"number":1000' in path.read_bytes())
    consumer.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_one_consumer_a_checkpoint(stream: StreamUnderTest, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    with Consumer(stream.broadcast, checkpoint=checkpoint), pytest.raises(CheckpointError, match="one process"):
        Consumer(stream.broadcast, checkpoint=checkpoint)
    Consumer(stream.broadcast, checkpoint=checkpoint).close()


def test_a_checkpoint_of_another_stream_is_refused(stream: StreamUnderTest, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    with Consumer(stream.broadcast, until="count:5", checkpoint=checkpoint) as consumer:
        list(consumer)
    stream.path.write_bytes(b"other\n" * 1000)
    with Consumer(stream.broadcast, until="now", checkpoint=checkpoint) as consumer, pytest.raises(StreamDiverged):
        list(consumer)


# --- servers that misbehave, and users that do


@FACES
def test_a_server_that_closes_at_once_is_tried_ever_more_slowly(stream: StreamUnderTest, face: Face) -> None:
    """Such as one whose --allow has no place for us: it must not be hammered."""

    def serve(sock: socket.socket) -> None:
        sock.close()

    with Peer(serve, proves="broadcast") as refusing:
        consumer = face.consumer([refusing.address, unused_address(), stream.broadcast], until="count:1000")
        assert payloads(face.collect(consumer)) == expected(0, 1000)
        assert refusing.accepted == 1
        begin = time.monotonic()
        alone = Consumer(refusing.address)
        threading.Timer(0.6, alone.stop).start()
        assert blocking(alone) == []
        assert refusing.accepted < 10
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": "message:1"},
        {"until": "time:4"},
        {"numbered": True, "start": 10},
    ],
)
def test_what_only_an_indexer_knows_is_a_usage_error_without_one(
    stream: StreamUnderTest, arguments: dict[str, Any]
) -> None:
    with Consumer(stream.broadcast, **arguments) as consumer, pytest.raises(UsageError, match="indexer"):
        next(iter(consumer))
