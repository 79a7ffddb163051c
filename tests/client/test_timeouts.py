"""Whatever a client waits for, `stop` and signals end the wait at once, and a time limit bounds it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_client import (
    AsyncConsumer,
    AsyncIndex,
    AsyncProducer,
    Consumer,
    GaveUpError,
    Index,
    Message,
    Producer,
    TailsrvError,
    Timeouts,
)
from tailsrv_client.blocking.connection import Connection, DialogueRunner, SuspendedError
from tailsrv_client.protocol.dialogue import Connect, Receive, Send
from tailsrv_formats.addresses import parse_address
from tests.support.streams import CAT, PUT, Peer, StreamUnderTest, kill_process, lines, run, started, unused_address
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_formats.addresses import Address


@pytest.fixture
def blackhole() -> Iterator[str]:
    """An address whose kernel drops whoever wants to connect: the queue of its listener is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def swallow(sock: socket.socket) -> None:
    """Accept, and never answer."""
    while sock.recv(100):
        pass


@pytest.mark.parametrize("step", [Send(b"x"), Receive(PATIENCE)], ids=["say", "hear"])
def test_what_a_stop_does_to_a_connection_is_no_fault_of_the_peer(step: Send | Receive) -> None:
    """A program that is interrupted would report it, and try the next address."""
    told: list[object] = []

    def dialogue(address: Address) -> Dialogue[None]:
        yield Connect(address)
        line.stop()
        try:
            told.append((yield step))
        except OSError as error:
            told.append(error)

    line = Connection()
    with Peer(swallow) as peer:
        runner = DialogueRunner(line, dialogue(parse_address(peer.address)))
        with pytest.raises(SuspendedError):
            runner.resume()
        runner.close()
    assert told == []


@contextlib.contextmanager
def waiting_at(state: str) -> Iterator[tuple[str, dict[str, Any], Callable[[], bool]]]:
    """An address and options of a consumer that end in a wait of this kind, and whether it has come to that."""
    busy = threading.Event()

    def then(serve: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
        def noted(sock: socket.socket) -> None:
            busy.set()
            serve(sock)

        return noted

    match state:
        case "back-off":
            yield unused_address(), {}, lambda: True
        case "proof":
            with Peer(then(swallow)) as peer:
                yield peer.address, {}, busy.is_set
        case "reading":
            with Peer(then(swallow), proves="broadcast") as peer:
                yield peer.address, {}, busy.is_set
        case "searching for the end":
            with Peer(then(swallow), proves="broadcast") as peer:
                yield peer.address, {"start": "end"}, busy.is_set
        case "searching for the end, refused":
            yield unused_address(), {"until": "now"}, lambda: True
        case "the index":
            with Peer(then(swallow), proves="index") as peer:
                yield unused_address(), {"start": "last:1", "index": peer.address}, busy.is_set
        case "the index, refused":
            yield unused_address(), {"start": "last:1", "index": unused_address()}, lambda: True
        case _:
            raise AssertionError(state)


Face = type[Consumer] | type[AsyncConsumer]

FACES = pytest.mark.parametrize("face", [Consumer, AsyncConsumer])

STATES = [
    "back-off",
    "proof",
    "reading",
    "searching for the end",
    "searching for the end, refused",
    "the index",
    "the index, refused",
]


def assert_stops(consumer: Consumer | AsyncConsumer, ready: Callable[[], bool]) -> None:
    """`stop` from another thread ends its loop within a second."""
    ended: list[float] = []

    def consume(consumer: Consumer) -> None:
        with consumer:
            assert not list(consumer)
        ended.append(time.monotonic())

    async def consume_awaited(consumer: AsyncConsumer) -> None:
        async with consumer:
            assert not [message async for message in consumer]
        ended.append(time.monotonic())

    def run() -> None:
        if isinstance(consumer, Consumer):
            consume(consumer)
        else:
            asyncio.run(consume_awaited(consumer))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(ready)
    time.sleep(0.1)  # into the wait itself, which nothing can be seen of
    begin = time.monotonic()
    consumer.stop()
    thread.join(PATIENCE)
    assert ended
    assert ended[0] - begin < 1


@FACES
@pytest.mark.parametrize("state", STATES)
def test_stop_ends_any_wait_of_a_consumer(state: str, face: Face) -> None:
    with waiting_at(state) as (address, options, ready):
        assert_stops(face(address, **options), ready)


@FACES
def test_stop_ends_a_connecting_that_nobody_answers(blackhole: str, face: Face) -> None:
    assert_stops(face(blackhole), lambda: True)


@pytest.fixture
def hanging_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """getaddrinfo, as it behaves without a reachable DNS server; numbers are known without asking it."""
    release = threading.Event()
    asked = threading.Event()
    real = socket.getaddrinfo

    def hang(host: str, *arguments: Any, **also: Any) -> Any:
        if also["flags"] & socket.AI_NUMERICHOST:
            return real(host, *arguments, **also)
        asked.set()
        release.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "no DNS")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield asked
    release.set()


@FACES
def test_stop_ends_the_resolution_of_a_name(hanging_resolver: threading.Event, face: Face) -> None:
    assert_stops(face("stuck.invalid"), hanging_resolver.is_set)


def polled(consumer: Consumer | AsyncConsumer, timeout: float, times: int = 1) -> list[list[Message]]:
    """What `poll` returns when it is called so often, each time after at most `timeout` seconds."""

    async def poll() -> list[list[Message]]:
        found = [consumer.poll(timeout) for _ in range(times)]
        return [one if isinstance(one, list) else await one for one in found]

    return asyncio.run(poll())


def ended(consumer: Consumer | AsyncConsumer) -> None:
    """Close it."""
    if isinstance(consumer, Consumer):
        consumer.close()
    else:
        consumer.stop()


def test_a_resolver_that_hangs_is_asked_once_however_often_it_is_needed(hanging_resolver: threading.Event) -> None:
    before = threading.active_count()
    with Consumer("stuck2.invalid:1", timeouts=Timeouts(connect=0.05)) as consumer:
        assert consumer.poll(1.0) == []
        assert hanging_resolver.is_set()
        assert threading.active_count() <= before + 1


@FACES
@pytest.mark.parametrize("state", STATES)
def test_poll_keeps_its_time_limit_in_every_state(state: str, face: Face) -> None:
    with waiting_at(state) as (address, options, _):
        consumer = face(address, **options)
        begin = time.monotonic()
        assert polled(consumer, 0.2, 3) == [[], [], []]
        assert 0.5 < time.monotonic() - begin < 2.0
        assert not consumer.finished
        ended(consumer)


@FACES
def test_poll_keeps_its_time_limit_while_connecting(blackhole: str, face: Face) -> None:
    consumer = face(blackhole)
    begin = time.monotonic()
    assert polled(consumer, 0.2) == [[]]
    assert time.monotonic() - begin < 1.0
    ended(consumer)


@FACES
def test_a_connection_that_takes_longer_than_each_poll_waits_is_made_all_the_same(face: Face) -> None:
    """The proof takes 0.5 s here, and each poll waits 0.05 s."""

    def serve(sock: socket.socket) -> None:
        if sock.recv(100) == b"0 0\n":
            time.sleep(0.5)
        else:
            sock.sendall(b"hello\n")
        sock.close()

    async def awaited(consumer: AsyncConsumer) -> list[Message]:
        while True:
            found = await consumer.poll(0.05)
            if found:
                return found

    def blocking(consumer: Consumer) -> list[Message]:
        while True:
            found = consumer.poll(0.05)
            if found:
                return found

    with Peer(serve) as server:
        consumer = face(server.address, until="count:1")
        found = blocking(consumer) if isinstance(consumer, Consumer) else asyncio.run(awaited(consumer))
        assert [message.payload for message in found] == [b"hello"]
        assert server.accepted == 2
        ended(consumer)


def test_awaited_a_connection_that_takes_longer_than_each_wait_is_made_all_the_same() -> None:
    def serve(sock: socket.socket) -> None:
        header = sock.recv(100)
        if header in {b"0 0\n", b"0 now\n"}:
            time.sleep(0.3)
        if header != b"0 0\n":
            sock.sendall(b"hello\n")
        sock.close()

    async def scenario(address: str) -> bytes:
        async with AsyncConsumer(address, until="now") as consumer:
            messages = aiter(consumer)
            while True:
                with contextlib.suppress(TimeoutError):
                    return (await asyncio.wait_for(anext(messages), 0.05)).payload

    with Peer(serve) as server:
        assert asyncio.run(scenario(server.address)) == b"hello"


@pytest.mark.parametrize("state", ["refused", "blackhole", "silent"])
def test_a_producer_closes_at_once_whatever_it_waits_for(state: str, blackhole: str) -> None:
    with Peer(swallow) as silent:
        address = {"refused": unused_address(), "blackhole": blackhole, "silent": silent.address}[state]
        producer = Producer(address, "n")
        producer.send(b"hello")
        if state == "silent":
            wait_until(lambda: silent.accepted == 1)
        begin = time.monotonic()
        assert producer.close(0.1) == 6
        assert time.monotonic() - begin < 1
        assert not producer._session_thread.thread.is_alive()

        async def scenario() -> None:
            asynchronous = AsyncProducer(address, "n")
            await asynchronous.send(b"hello")
            await asyncio.sleep(0.1)
            await asynchronous.close()

        begin = time.monotonic()
        asyncio.run(scenario())
        assert time.monotonic() - begin < 1


def test_a_producer_closes_at_once_while_a_name_is_resolved(hanging_resolver: threading.Event) -> None:
    producer = Producer("stuck3.invalid", "n")
    assert hanging_resolver.wait(PATIENCE)
    begin = time.monotonic()
    producer.close()
    assert time.monotonic() - begin < 1
    assert not producer._session_thread.thread.is_alive()

    async def scenario() -> None:
        async with asyncio.timeout(PATIENCE):
            asynchronous = AsyncProducer("stuck3.invalid", "n")
            await asynchronous.send(b"hello")
            await asyncio.sleep(0.1)
            await asynchronous.close()

    begin = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - begin < 1, "the end of the loop waits for no resolver"


@pytest.mark.parametrize("state", ["silent", "blackhole"])
def test_stop_ends_a_look_up(state: str, blackhole: str) -> None:
    with Peer(swallow, proves="index") as peer:
        index = Index(peer.address if state == "silent" else blackhole)
        timer = threading.Timer(0.2, index.stop)
        timer.start()
        begin = time.monotonic()
        with pytest.raises(TailsrvError, match="stopped"):
            index.count()
        assert time.monotonic() - begin < 1.2
        index.close()
        timer.join()


def test_a_look_up_is_bounded_though_the_server_sends_a_byte_now_and_then() -> None:
    def drip(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"{")
            time.sleep(0.05)

    with Peer(drip, proves="index") as peer, Index(peer.address, timeout=0.5) as index:
        begin = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            index.count()
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", STATES)
def test_signals_end_cat_in_every_state(state: str, signum: int) -> None:
    with waiting_at(state) as (address, options, ready):
        words = [word for name, value in options.items() for word in (f"--{name.replace('start', 'from')}", value)]
        with started([*CAT, address, *words]) as cat:
            wait_until(ready)
            if "refused" in state or state == "back-off":
                cat.stderr.readline()
            begin = time.monotonic()
            assert kill_process(cat, signum) == -signum
            assert time.monotonic() - begin < 2


@pytest.mark.parametrize("options", [[], ["--raw"], ["--follow", "/etc/hostname"]])
@pytest.mark.parametrize("state", ["refused", "blackhole", "silent"])
def test_signals_end_put_in_every_state(state: str, options: list[str], blackhole: str) -> None:
    with Peer(swallow) as silent:
        address = {"refused": unused_address(), "blackhole": blackhole, "silent": silent.address}[state]
        with started([*PUT, address, *options], stdin=subprocess.PIPE) as put:
            put.stdin.write(b"hello\n")
            put.stdin.flush()
            if state == "refused":
                put.stderr.readline()
            elif state == "silent":
                wait_until(lambda: silent.accepted > 0)
            else:
                wait_until(lambda: descriptors(put.pid) > 3)
            begin = time.monotonic()
            assert kill_process(put, signal.SIGTERM) == -signal.SIGTERM
            assert time.monotonic() - begin < 2


def descriptors(pid: int) -> int:
    """How many sockets and eventfds the process has, more or less."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- time limits of the commands


def assert_gives_up(command: list[str], data: bytes = b"hello\n", *, after: float = 0.5) -> str:
    """It exits 3, after one line at least, and not before its time; what it said last."""
    begin = time.monotonic()
    ended = run(command, data)
    took = time.monotonic() - begin
    assert ended.returncode == 3, ended.stderr
    assert after <= took < after + 5
    return ended.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["--until", "now"], ["--from", "end"]])
def test_cat_gives_up_when_nothing_can_be_reached(options: list[str], blackhole: str) -> None:
    for address in (unused_address(), blackhole):
        said = assert_gives_up([*CAT, address, "--timeout", "500ms", *options])
        assert "no working connection for 0.5 s" in said
        assert address in said


def test_cat_gives_up_when_the_index_cannot_be_reached(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(b"hello\n")
        index = ["--index", unused_address(), "--timeout", "500ms"]
        for options in (["--from", "last:1"], ["--format", "%t"]):
            said = assert_gives_up([*CAT, stream.broadcast, *index, *options])
            assert index[1] in said, "the error names the address"


def test_cat_does_not_give_up_on_an_idle_stream_and_does_when_its_server_is_gone(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(b"one\n")
        with started([*CAT, stream.broadcast, "--timeout", "700ms"]) as cat:
            assert cat.stdout.read(4) == b"one\n"
            with pytest.raises(subprocess.TimeoutExpired):
                cat.wait(1.5)
            stream.append(b"two\n")
            assert cat.stdout.read(4) == b"two\n"
            stream.kill("tailsrv")
            assert cat.wait(PATIENCE) == 3


def test_cat_gives_up_when_bytes_that_exist_do_not_come() -> None:
    """As behind a server that hangs in the middle: an idle stream it is not."""
    with Peer(lambda sock: answer_end(sock, 100), proves="broadcast") as hanging:
        said = assert_gives_up([*CAT, hanging.address, "--until", "now", "--timeout", "500ms"])
    assert "no working connection" in said


def answer_end(sock: socket.socket, end: int) -> None:
    """Answer questions for the end, send half of the stream, and hang."""
    words = sock.recv(100).split()
    if words[1:] == [b"now"]:
        sock.sendall(b"x" * max(0, end - int(words[0])))
        sock.close()
    else:
        sock.sendall(b"x" * (end // 2))


def test_put_gives_up_without_an_acknowledgement(tmp_path: Path, blackhole: str) -> None:
    spool = ["--name", "n", "--spool", str(tmp_path / "spool")]
    for address in (unused_address(), blackhole):
        for options in ([], spool, ["--raw"]):
            said = assert_gives_up([*PUT, address, "--timeout", "500ms", *options])
            assert "for 0.5 s" in said
    assert_gives_up([*PUT, unused_address(), "--timeout", "500ms", "--follow", "/etc/hostname"])


def test_put_gives_up_when_a_collator_accepts_and_acknowledges_nothing() -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"0 0\n")
        swallow(sock)

    with Peer(greet) as collator:
        assert_gives_up([*PUT, collator.address, "--timeout", "500ms"])
        with started([*PUT, collator.address, "--timeout", "500ms"], stdin=subprocess.PIPE) as put:
            put.stdin.write(b"hello\n")
            put.stdin.flush()
            assert put.wait(PATIENCE) == 3, "though its input goes on"
    with Peer(greet) as collator:
        assert_gives_up([*PUT, collator.address, "--timeout", "500ms", "--follow", "/etc/hostname"])


def test_put_waits_for_input_for_as_long_as_it_takes(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        with started([*PUT, stream.acks, "--timeout", "300ms"], stdin=subprocess.PIPE) as put:
            put.stdin.write(b"one\n")
            put.stdin.flush()
            wait_until(lambda: stream.content() == b"one\n")
            with pytest.raises(subprocess.TimeoutExpired):
                put.wait(1.0)
            put.stdin.write(b"two\n")
            put.stdin.close()
            assert put.wait(PATIENCE) == 0
        assert stream.content() == b"one\ntwo\n"


def test_a_consumer_gives_up_when_asked_to() -> None:
    async def awaited(options: dict[str, Any]) -> None:
        async with AsyncConsumer(unused_address(), timeouts=Timeouts(outage=0.3), **options) as consumer:
            await anext(aiter(consumer))

    wanted: list[dict[str, Any]] = [{}, {"start": "end"}]
    for options in wanted:
        with (
            Consumer(unused_address(), timeouts=Timeouts(outage=0.3), **options) as consumer,
            pytest.raises(GaveUpError),
        ):
            next(iter(consumer))
        with pytest.raises(GaveUpError):
            asyncio.run(awaited(options))


def test_a_producer_gives_up_when_asked_to(tmp_path: Path) -> None:
    async def awaited(address: str, spool: str | None) -> None:
        async with AsyncProducer(address, "n", spool=spool, outage=0.3) as producer:
            receipt = await producer.send(b"hello")
            with pytest.raises(GaveUpError):
                await receipt
            with pytest.raises(GaveUpError):
                await producer.send(b"more")

    def greet(sock: socket.socket) -> None:
        sock.sendall(b"0 0\n")
        swallow(sock)

    with Peer(greet) as mute:
        for number, address in enumerate((unused_address(), mute.address)):
            for spool in (None, str(tmp_path / f"{number}.spool")):
                with pytest.raises(GaveUpError, match="no acknowledgement for"):
                    asyncio.run(awaited(address, spool))
                producer = Producer(address, "n", spool=spool, outage=0.3)
                if spool is None:  # else it is still there
                    producer.send(b"hello")
                with pytest.raises(GaveUpError):
                    producer.flush()
                producer.close()


def test_a_producer_that_is_acknowledged_or_has_nothing_to_send_does_not_give_up(tmp_path: Path) -> None:
    async def awaited(address: str) -> None:
        async with AsyncProducer(address, "a", outage=0.3) as producer:
            for _ in range(10):
                await (await producer.send(b"hello"))
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.6)
            await (await producer.send(b"hello"))

    with StreamUnderTest(tmp_path / "s.log") as stream:
        asyncio.run(awaited(stream.acks))
        assert stream.content() == b"hello\n" * 11


# --- the index comes and goes


def test_cat_with_times_survives_the_indexers_restarts_and_rebuilds(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 50))
        command = [*CAT, stream.broadcast, "--index", stream.index, "--format", r"%n %t %s\n"]
        with started(command) as cat:
            found = [cat.stdout.readline() for _ in range(50)]
            for turn in range(1, 4):
                stream.kill("tailsrv-index")
                stream.append(lines(50 * turn, 50 * turn + 50))
                assert b"; retrying" in cat.stderr.readline()
                stream.daemon("tailsrv-index", *(["--rebuild"] if turn == 2 else []))
                found += [cat.stdout.readline() for _ in range(50)]
            kill_process(cat, signal.SIGTERM)
        assert [line.split()[0] for line in found] == [b"%d" % number for number in range(200)]
        assert all(line.split()[1].endswith(b"Z") for line in found)


@pytest.mark.parametrize("awaited", [False, True])
def test_a_start_by_number_waits_for_the_indexer(tmp_path: Path, awaited: bool) -> None:
    async def collect(consumer: AsyncConsumer) -> list[bytes]:
        async with consumer:
            return [message.payload async for message in consumer]

    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 10))
        address = stream.index
        stream.kill("tailsrv-index")
        options: dict[str, Any] = {"index": address, "start": "last:2", "until": "now"}
        timer = threading.Timer(0.3, lambda: stream.index)
        timer.start()
        if awaited:
            found = asyncio.run(collect(AsyncConsumer(stream.broadcast, **options)))
        else:
            with Consumer(stream.broadcast, **options) as consumer:
                found = [message.payload for message in consumer]
        timer.join()
        assert found == [b"line 8", b"line 9"]


def test_what_is_not_indexed_yet_is_waited_for() -> None:
    answers = [
        b'{"error":"not indexed yet: 0 messages in 0 of 7 bytes so far; ask again later"}\n',
        b'{"error":"beyond the stream; the index is being rebuilt, ask again"}\n',
        b'{"number":3,"offset":0,"count":4,"end":7}\n',
    ]

    def serve(sock: socket.socket) -> None:
        while sock.recv(100):
            sock.sendall(answers.pop(0))

    with (
        Peer(serve, proves="index") as peer,
        Consumer(unused_address(), index=peer.address, start="message:3") as consumer,
    ):
        with pytest.raises(TimeoutError):  # nobody is at the broadcaster's address
            consumer.check(4.0)
        assert consumer.number == 3


def test_one_late_reply_costs_no_other_look_up() -> None:
    """Message 1 takes longer than the time limit, while others are answered: nobody loses the connection."""

    def serve(sock: socket.socket) -> None:
        received = b""
        while chunk := sock.recv(1000):
            received += chunk
            *requests, received = received.split(b"\n")
            for request in requests:
                time.sleep({b'{"number":0}': 0.5, b'{"number":1}': 0.7}.get(request, 0.0))
                sock.sendall(b'{"number":0,"offset":%d}\n' % len(request))

    async def scenario(address: str) -> list[Any]:
        async with AsyncIndex(address, timeout=1.0) as index:
            await index.offset_of(3)
            first = [asyncio.ensure_future(index.offset_of(number)) for number in (0, 1)]
            await asyncio.sleep(0.7)
            return await asyncio.gather(*first, index.offset_of(22))

    with Peer(serve, proves="index") as peer:
        assert asyncio.run(scenario(peer.address)) == [len('{"number":0}'), len('{"number":0}'), len('{"number":22}')]
        assert peer.accepted == 1


def test_when_the_indexer_falls_silent_all_are_asked_again_elsewhere(tmp_path: Path) -> None:
    async def scenario(addresses: list[str]) -> list[int]:
        async with AsyncIndex(addresses, timeout=0.5) as index:
            return await asyncio.gather(*(index.offset_of(number) for number in range(10)))

    with StreamUnderTest(tmp_path / "s.log") as stream, Peer(swallow, proves="index") as silent:
        stream.append(lines(0, 100))
        with Index(stream.index) as index:
            wait_until(lambda: index.count() == 100)
        assert asyncio.run(scenario([silent.address, stream.index])) == [7 * number for number in range(10)]


def test_a_program_that_ends_while_a_producer_connects_ends_without_a_word() -> None:
    script = "import sys; from tailsrv_client import Producer; Producer(sys.argv[1], 'n').send(b'x')"
    ended = run([sys.executable, "-c", script, unused_address()])
    assert (ended.returncode, ended.stderr.count(b"Traceback")) == (0, 0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_gets_ends_cat(stream: StreamUnderTest, signum: int) -> None:
    """As one that comes right before the main thread waits: nothing interrupts that wait."""
    stream.path.write_bytes(b"one\n")
    program = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"  # ours let no signal in
        "from tailsrv_client.cat.cli import main\n"
        "main()\n"
    )
    with started([sys.executable, "-c", program, stream.broadcast]) as cat:
        assert cat.stdout.read(4) == b"one\n"
        other = sorted(int(name) for name in os.listdir(f"/proc/{cat.pid}/task"))[1]
        assert ctypes.CDLL(None).tgkill(cat.pid, other, signum) == 0
        assert cat.wait(PATIENCE) == -signum
        assert cat.stderr.read() == b""
