"""One contract, two faces: what `Consumer` promises, `AsyncConsumer` does; and they look the same."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import pytest

from tailsrv_client import (
    AsyncConsumer,
    AsyncIndex,
    AsyncProducer,
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    Consumer,
    FileCheckpointStore,
    GaveUpError,
    Index,
    IndexFailed,
    Lag,
    Message,
    Producer,
    ProducerFull,
    SQLiteCheckpointStore,
    StreamDiverged,
    TailsrvError,
    Timeouts,
    UsageError,
)
from tests.support.streams import Peer, StreamUnderTest, lines, unused_address
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

Face = type[Consumer] | type[AsyncConsumer]

FACES = pytest.mark.parametrize("face", [Consumer, AsyncConsumer])


class Driver:
    """Calls the methods of either face as a blocking program would: a test is written once."""

    def __init__(self, consumer: Any, runner: asyncio.Runner | None = None) -> None:
        self.consumer = consumer
        self._runner = runner or asyncio.Runner()

    def made(self, face: Any, *args: Any, **named: Any) -> Any:
        """One of the other faces, in the same event loop."""

        async def make() -> Any:
            return face(*args, **named)

        return Driver(self._runner.run(make()), self._runner)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.consumer, name)
        return (lambda *args, **named: self._awaited(value(*args, **named))) if callable(value) else value

    def _awaited(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            return self._runner.run(self._coroutine(value))
        return self._iterated(aiter(value)) if hasattr(value, "__aiter__") else value

    async def _coroutine(self, value: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await value

    def _iterated(self, iterator: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield self._awaited(anext(iterator))
            except StopAsyncIteration:
                return

    def __iter__(self) -> Iterator[Message]:
        return iter(self.consumer) if not hasattr(self.consumer, "__aiter__") else self._iterated(aiter(self.consumer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.consumer is not None:
            self.close()
        self._runner.close()


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 100))
        yield stream


def payloads(messages: list[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def expected(begin: int, end: int) -> list[bytes]:
    return [b"line %d" % number for number in range(begin, end)]


def public(face: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(face) if not name.startswith("_")}


@pytest.mark.parametrize(("one", "other"), [(Consumer, AsyncConsumer), (Producer, AsyncProducer), (Index, AsyncIndex)])
def test_both_faces_have_the_same_methods_and_parameters(one: type, other: type) -> None:
    blocking, awaited = public(one), public(other)
    assert set(blocking) == set(awaited)
    for name, method in blocking.items():
        if callable(method):
            ours = inspect.signature(method).parameters
            theirs = inspect.signature(awaited[name]).parameters
            assert list(ours.values()) == list(theirs.values()), name
    assert inspect.signature(one).parameters == inspect.signature(other).parameters


def test_nothing_internal_is_public() -> None:
    assert set(public(Consumer)) == {
        *("poll", "batches", "chunks", "check", "lag", "save", "stop", "close"),
        *("position", "number", "finished", "complete", "remaining", "unsaved"),
    }


@FACES
def test_poll_returns_what_is_there_and_nothing_when_nothing_comes_in_time(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast)) as consumer:
        assert payloads(consumer.poll(PATIENCE)) == expected(0, 100)
        begin = time.monotonic()
        assert consumer.poll(0.2) == []
        assert 0.15 < time.monotonic() - begin < 2
        stream.append(lines(100, 101))
        assert payloads(consumer.poll(PATIENCE)) == expected(100, 101)
        assert not consumer.finished
        consumer.stop()
        assert consumer.poll(PATIENCE) == []
        assert consumer.finished
        assert not consumer.complete


@FACES
def test_a_list_has_at_most_as_many_messages_as_asked_for(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast, until="now")) as consumer:
        sizes = [len(batch) for batch in consumer.batches(max_messages=30)]
        assert sizes == [30, 30, 30, 10]
        assert consumer.complete


@FACES
def test_a_list_is_filled_over_several_appends(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast, checkpoint_seconds=None)) as consumer:
        batches = consumer.batches(max_messages=101, max_seconds=PATIENCE)
        stream.append(lines(100, 150))
        assert payloads(next(batches)) == expected(0, 101)
        assert consumer.number == 101
        stream.append(lines(150, 202))
        assert payloads(next(batches)) == expected(101, 202)
        assert consumer.position.offset == len(lines(0, 202))


@FACES
def test_a_list_is_empty_when_the_stream_is_idle_for_max_seconds(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast, start="end")) as consumer:
        batches = consumer.batches(max_seconds=0.1)
        assert [next(batches) for _ in range(3)] == [[], [], []]
        stream.append(lines(100, 103))
        found: list[bytes] = []
        while len(found) < 3:
            found += payloads(next(batches))
        assert found == expected(100, 103)


@FACES
def test_a_checkpoint_never_runs_ahead_of_a_list_that_is_being_filled(
    stream: StreamUnderTest, tmp_path: Path, face: Face
) -> None:
    path = str(tmp_path / "checkpoint")
    with Driver(face(stream.broadcast, checkpoint=path, checkpoint_seconds=0.05)) as consumer:
        batches = consumer.batches(max_messages=90, max_seconds=1.0)
        assert len(next(batches)) == 90
        stream.append(lines(100, 120))
        assert payloads(next(batches)) == expected(90, 120)
        position = consumer.position
        consumer.stop()
    with Consumer(stream.broadcast, checkpoint=path, until="now") as again:
        assert again.position == position
        assert again.number == 120
    with Driver(face(stream.broadcast, start="start", checkpoint=None)) as consumer:
        assert payloads(next(consumer.batches(max_messages=3))) == expected(0, 3)


@FACES
def test_messages_have_numbers_where_the_first_one_is_known(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast, until="now", numbered=True)) as consumer:
        assert [message.number for message in consumer] == list(range(100))
    with Driver(face(stream.broadcast, until="now", index=stream.index)) as consumer:
        assert [message.number for message in consumer] == list(range(100))
    with Driver(face(stream.broadcast, until="count:1")) as consumer:
        assert [message.number for message in consumer] == [None]
        assert consumer.number == 1
    middle = len(lines(0, 50))
    with Driver(face(stream.broadcast, start=middle, until="count:2")) as consumer:
        assert [message.number for message in consumer] == [None, None]
    with Driver(face(stream.broadcast, start=middle, until="count:2", index=stream.index, numbered=True)) as consumer:
        assert [message.number for message in consumer] == [50, 51]


@FACES
def test_messages_have_times_where_asked_for(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast, until="count:101", index=stream.index, timed=True)) as consumer:
        messages = iter(consumer)
        found = [next(messages) for _ in range(100)]
        stream.append(lines(100, 101))
        found += messages
        assert payloads(found) == expected(0, 101)
        assert [message.number for message in found] == list(range(101))
        assert all(message.time is not None and message.time.endswith("Z") for message in found)
    with pytest.raises(UsageError, match="index=ADDR"):
        face(stream.broadcast, timed=True)


@FACES
def test_lag_is_known_in_bytes_and_with_an_index_in_messages_and_seconds(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast)) as consumer:
        assert consumer.lag() == Lag(len(lines(0, 100)))
        batches = consumer.batches(max_messages=60)
        next(batches)
        assert consumer.lag() == Lag(len(lines(60, 100)))
        next(batches)
        assert consumer.lag() == Lag(0)
    with Driver(face(stream.broadcast, start="message:90", index=stream.index)) as consumer:
        with pytest.raises(UsageError, match="position"):
            consumer.lag()
        consumer.check()
        lag = consumer.lag()
        assert (lag.bytes, lag.messages) == (len(lines(90, 100)), 10)
        assert 0 <= lag.seconds < PATIENCE


@FACES
def test_lag_raises_when_nobody_answers(face: Face) -> None:
    with Driver(face(unused_address())) as consumer, pytest.raises(OSError, match="refused"):
        consumer.lag()


@FACES
def test_check_raises_what_reading_would(stream: StreamUnderTest, face: Face) -> None:
    wrong: list[tuple[dict[str, Any], type[TailsrvError]]] = [
        ({"start": "message:1"}, UsageError),
        ({"start": "message:1000", "index": stream.index}, IndexFailed),
    ]
    for options, error in wrong:
        with Driver(face(stream.broadcast, **options)) as consumer, pytest.raises(error):
            consumer.check()
    with Driver(face(unused_address(), timeouts=Timeouts(outage=0.2))) as consumer, pytest.raises(GaveUpError):
        consumer.check()
    with Driver(face(unused_address())) as consumer, pytest.raises(TimeoutError, match="no working connection within"):
        consumer.check(0.2)
    with Driver(face(stream.broadcast, start="last:1", index=stream.index)) as consumer:
        consumer.check()
        assert consumer.position.offset == len(lines(0, 99))
        assert payloads(consumer.poll(PATIENCE)) == expected(99, 100)


@FACES
def test_after_an_error_a_consumer_can_be_asked_again(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast)) as consumer:
        consumer.poll(PATIENCE)
        stream.kill("tailsrv")
        stream.path.write_bytes(b"another stream\n" * 1000)
        assert stream.broadcast
        for _ in range(2):
            with pytest.raises(StreamDiverged):
                consumer.poll(PATIENCE)


# --- the other two


PRODUCERS = pytest.mark.parametrize("producer_face", [Producer, AsyncProducer])
INDEXES = pytest.mark.parametrize("index_face", [Index, AsyncIndex])


@PRODUCERS
def test_time_limits_of_a_producer(producer_face: Any) -> None:
    with Driver(None) as driver:
        producer = driver.made(producer_face, unused_address(), "n", max_in_flight_bytes=10)
        producer.send(b"12345")
        assert producer.in_flight == 6
        with pytest.raises(ProducerFull, match="6 bytes are in flight"):
            producer.send(b"12345", timeout=0.05)
        with pytest.raises(ProducerFull):
            producer.send_framed(b"12345\n", timeout=0)
        with pytest.raises(TimeoutError, match="6 bytes are not acknowledged"):
            producer.flush(0.05)
        begin = time.monotonic()
        assert producer.close(0.1) == 6
        assert 0.05 < time.monotonic() - begin < 2
        with pytest.raises(TailsrvError, match="closed"):
            producer.send(b"x")


@PRODUCERS
def test_framed_messages_are_sent_as_they_are(stream: StreamUnderTest, producer_face: Any, tmp_path: Path) -> None:
    with Driver(None) as driver:
        for spool in (None, str(tmp_path / "spool")):
            producer = driver.made(producer_face, stream.acks, f"n{spool is None}", spool=spool)
            producer.send_framed(b"one\ntwo\n")
            producer.flush(PATIENCE)
            assert producer.in_flight == 0
            assert producer.close() == 0
    assert stream.content() == lines(0, 100) + b"one\ntwo\n" * 2


@PRODUCERS
def test_a_failure_is_called_back_once(producer_face: Any) -> None:
    failures: list[None] = []
    with Driver(None) as driver:
        producer = driver.made(
            producer_face, unused_address(), "n", outage=0.1, on_failure=lambda: failures.append(None)
        )
        producer.send(b"x")
        with pytest.raises(GaveUpError):
            producer.flush(PATIENCE)
        producer.close()
    assert failures == [None]


@INDEXES
def test_look_ups(stream: StreamUnderTest, index_face: Any) -> None:
    with Driver(None) as driver:
        index = driver.made(index_face, stream.index)
        while index.count() < 100:
            time.sleep(0.01)
        assert index.offset_of(7) == len(lines(0, 7))
        assert list(index.offsets_of(range(1000 % 101))) == [len(lines(0, number)) for number in range(1000 % 101)]
        assert index.last(1) == len(lines(0, 99))
        assert index.entry(3).length == 7
        assert index.message_holding(8).number == 1
        assert index.at_time(0).number == 0
        assert [entry.number for entry in index.ask_all([{"number": 5}, {"last": 1}])] == [5, 99]
        with pytest.raises(IndexFailed, match="beyond"):
            list(index.offsets_of([1, 1000]))
        assert index.offset_of(1) == 7, "an error costs no connection"
        index.stop()
        with pytest.raises(TailsrvError, match="stopped"):
            index.count()
        index.close()


# --- checkpoint stores


def test_threads_that_share_an_index_get_their_own_replies(stream: StreamUnderTest) -> None:
    assert stream.index is not None
    with Index(stream.index) as index, ThreadPoolExecutor(8) as threads:
        numbers = [number % 100 for number in range(400)]
        assert list(threads.map(index.offset_of, numbers)) == [len(lines(0, number)) for number in numbers]


def file_store(folder: Path) -> CheckpointStore:
    return FileCheckpointStore(str(folder / "checkpoint"))


def sqlite_store(folder: Path) -> CheckpointStore:
    return SQLiteCheckpointStore(str(folder / "results.db"), "billing")


STORES = pytest.mark.parametrize("make", [file_store, sqlite_store])


@STORES
def test_a_store_keeps_the_last_checkpoint(tmp_path: Path, make: Callable[[Path], CheckpointStore]) -> None:
    store = make(tmp_path)
    assert isinstance(store, CheckpointStore)
    assert store.load() is None
    for number in range(3):
        store.save(Checkpoint(number, "ab", None if number else 7))
    store.close()
    again = make(tmp_path)
    assert again.load() == Checkpoint(2, "ab", None)
    again.close()


@STORES
@FACES
def test_a_consumer_goes_on_from_any_store(
    stream: StreamUnderTest, tmp_path: Path, make: Callable[[Path], CheckpointStore], face: Face
) -> None:
    found: list[bytes] = []
    for _ in range(4):
        with Driver(face(stream.broadcast, checkpoint=make(tmp_path), until="now")) as consumer:
            for batch in consumer.batches(max_messages=40):
                found += payloads(batch)
                break
    assert found == expected(0, 100)


@STORES
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, make: Callable[[Path], CheckpointStore]) -> None:
    store = make(tmp_path)
    store.save(Checkpoint(1, "ab"))
    store.close()
    if make is file_store:
        (tmp_path / "checkpoint").write_bytes(b"{}")
    else:
        with sqlite3.connect(tmp_path / "results.db") as database:
            database.execute("UPDATE tailsrv_checkpoints SET checkpoint = '{}'")
        database.close()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Consumer("localhost", checkpoint=make(tmp_path))


def test_two_names_in_one_database_are_two_checkpoints(tmp_path: Path) -> None:
    for name, offset in (("a", 1), ("b", 2), ("a", 3)):
        store = SQLiteCheckpointStore(str(tmp_path / "db"), name)
        store.save(Checkpoint(offset, ""))
        store.close()
    for name, offset in (("a", 3), ("b", 2)):
        store = SQLiteCheckpointStore(str(tmp_path / "db"), name)
        assert store.load() == Checkpoint(offset, "")
        store.close()


def test_a_database_that_cannot_be_used_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot use"):
        SQLiteCheckpointStore(str(tmp_path / "missing" / "db"), "n")


def test_a_database_that_cannot_be_written_does_not_end_reading(stream: StreamUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "db"
    with Consumer(
        stream.broadcast, checkpoint=SQLiteCheckpointStore(str(path), "n"), checkpoint_messages=1, until="now"
    ) as consumer:
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE tailsrv_checkpoints")
        database.close()
        assert payloads(list(consumer)) == expected(0, 100)
        assert consumer.unsaved is not None
        with pytest.raises(OSError, match="no such table"):
            consumer.save()


def test_every_error_has_one_root() -> None:
    import tailsrv_client  # noqa: PLC0415

    values = vars(tailsrv_client).values()
    errors = [value for value in values if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) > 10
    assert all(issubclass(error, TailsrvError) for error in errors)
    assert issubclass(UsageError, ValueError)


# --- what a reading of this change found


@FACES
def test_where_nothing_is_wanted_no_server_is_needed(face: Face) -> None:
    with Driver(face(unused_address(), until="count:0")) as consumer:
        consumer.check(PATIENCE)
        assert consumer.complete
        assert consumer.poll(PATIENCE) == []


@FACES
def test_bytes_are_acked_when_more_are_asked_for_by_whatever_iterator(
    stream: StreamUnderTest, tmp_path: Path, face: Face
) -> None:
    path = str(tmp_path / "checkpoint")
    with Driver(face(stream.broadcast, checkpoint=path, checkpoint_seconds=None)) as consumer:
        assert next(consumer.chunks()) == lines(0, 100)
        stream.append(lines(100, 110))
        assert next(consumer.chunks()) == lines(100, 110)
        consumer.save()
    store = FileCheckpointStore(path)
    saved = store.load()
    store.close()
    assert saved is not None
    assert saved.offset == len(lines(0, 110))


@FACES
def test_bytes_and_messages_are_not_mixed(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast)) as consumer:
        consumer.poll(PATIENCE)
        stream.append(lines(100, 110))
        with pytest.raises(UsageError, match="consumer of their own"):
            next(consumer.chunks())
    with Driver(face(stream.broadcast)) as consumer:
        next(consumer.chunks())
        stream.append(lines(110, 120))
        with pytest.raises(UsageError, match="consumer of their own"):
            consumer.poll(PATIENCE)


def test_an_interrupt_while_a_list_is_filled_loses_no_message(stream: StreamUnderTest) -> None:
    with Consumer(stream.broadcast) as consumer:
        threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)).start()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGUSR2, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                next(consumer.batches(max_messages=1000, max_seconds=PATIENCE))
        finally:
            signal.signal(signal.SIGUSR2, before)
        assert consumer.number == 0
        stream.append(lines(100, 101))
        found: list[Message] = []
        while len(found) < 101:
            found += consumer.poll(PATIENCE)
        assert payloads(found) == expected(0, 101)


def test_awaited_a_cancelled_list_loses_no_message(stream: StreamUnderTest) -> None:
    async def scenario() -> list[Message]:
        async with AsyncConsumer(stream.broadcast) as consumer:
            batches = aiter(consumer.batches(max_messages=1000, max_seconds=PATIENCE))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batches), 0.3)
            assert consumer.number == 0
            return await consumer.poll(PATIENCE)

    assert payloads(asyncio.run(scenario())) == expected(0, 100)


@FACES
def test_times_are_looked_up_on_one_connection(tmp_path: Path, face: Face) -> None:
    def serve(sock: socket.socket) -> None:
        while requests := sock.recv(1 << 16):
            sock.sendall(b'{"number":0,"offset":0,"time":"2026-11-25T00:00:00Z"}\n' * requests.count(b"\n"))

    with Peer(serve, proves="index") as index, StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 2000))
        with Driver(face(stream.broadcast, index=index.address, timed=True, until="count:2100")) as consumer:
            found = consumer.poll(PATIENCE)
            stream.append(lines(2000, 2100))
            while not consumer.finished:
                found += consumer.poll(PATIENCE)
        assert payloads(found) == expected(0, 2100)
        assert {message.time for message in found} == {"2026-11-25T00:00:00Z"}
        assert index.accepted <= 1, "the first connection proved what it is and is used from then on"


@FACES
def test_times_go_on_when_the_indexer_comes_back(stream: StreamUnderTest, face: Face) -> None:
    with Driver(face(stream.broadcast, index=stream.index, timed=True)) as consumer:
        assert len(consumer.poll(PATIENCE)) == 100
        stream.kill("tailsrv-index")
        stream.append(lines(100, 110))
        assert consumer.poll(0.2) == []
        assert stream.index
        found: list[Message] = []
        while len(found) < 10:
            found += consumer.poll(0.1)
        assert payloads(found) == expected(100, 110)


def test_a_check_that_takes_too_long_names_the_server() -> None:
    address = unused_address()
    with Consumer(address) as consumer, pytest.raises(TimeoutError, match=f"within 0.2 s .{address}: "):
        consumer.check(0.2)
