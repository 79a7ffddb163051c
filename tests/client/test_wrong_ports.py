"""A client at a wrong port says so within seconds, names the likely port, and leaves the stream as it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_client import (
    AsyncConsumer,
    AsyncIndex,
    AsyncProducer,
    Consumer,
    Index,
    Position,
    Producer,
    ProducerRefused,
    TailsrvHandler,
)
from tailsrv_client.errors import UnknownHostError, WrongPortError
from tailsrv_client.protocol.ports import (
    ACKNOWLEDGED,
    BROADCAST,
    ENDED_SECONDS,
    GREETING_SECONDS,
    INDEX,
    RAW,
    answered,
    greets,
    wrong_port,
)
from tailsrv_client.protocol.reader import Reader
from tailsrv_client.protocol.servers import EndedError, Rotation, Servers, SilentError, parse_addresses
from tailsrv_formats.addresses import Address
from tailsrv_formats.errors import UsageError
from tests.support.daemons import Daemon
from tests.support.streams import CAT, PUT, Peer, StreamUnderTest, run, started
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamUnderTest]:
    """Whose content looks like nothing that a client could take for an answer."""
    with StreamUnderTest(tmp_path_factory.mktemp("wrong") / "s.log") as stream:
        with Producer(stream.acks, "first") as producer:
            for number in range(10):
                producer.send(b"line %d" % number)
        yield stream


PORTS = {"broadcast": BROADCAST, "raw": RAW, "acks": ACKNOWLEDGED, "index": INDEX}

COMMANDS: dict[str, tuple[str, Callable[[str, str], list[str]]]] = {
    "cat": ("broadcast", lambda at, _: [*CAT, at]),
    "cat to the end": ("broadcast", lambda at, _: [*CAT, at, "--until", "now"]),
    "cat from the end": ("broadcast", lambda at, _: [*CAT, at, "--from", "end"]),
    "cat with an index": ("index", lambda at, right: [*CAT, right, "--index", at, "--from", "last:1"]),
    "cat with times": ("index", lambda at, right: [*CAT, right, "--index", at, "--format", "%t"]),
    "put": ("acks", lambda at, _: [*PUT, at]),
    "put with a name": ("acks", lambda at, _: [*PUT, at, "--name", "n"]),
    "put with a number as its name": ("acks", lambda at, _: [*PUT, at, "--name", "0"]),
    "put --follow": ("acks", lambda at, _: [*PUT, at, "--follow", "/etc/hostname"]),
}
CASES = [
    pytest.param(command, port, id=f"{command} at the {PORTS[port].name} port")
    for command, (role, _) in COMMANDS.items()
    for port in PORTS
    if port != role
]


@pytest.mark.parametrize(("command", "port"), CASES)
def test_a_command_at_a_wrong_port_exits_1_and_names_the_right_one(
    stream: StreamUnderTest, command: str, port: str
) -> None:
    role, build = COMMANDS[command]
    before = stream.content()
    with started(build(getattr(stream, port), stream.broadcast), stdin=-1) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()  # and is left open: it must not take the end of the input to notice
        assert process.wait(PATIENCE) == 1
        said = process.stderr.read().decode().splitlines()[-1]
    assert f"is not the {PORTS[role].name} port" in said
    assert f"port is {PORTS[role].number} unless" in said
    assert f"({PORTS[port].number})" in said, "what it is connected to instead"
    assert stream.content() == before


@pytest.mark.parametrize("command", [[*CAT], [*PUT], [*CAT, "localhost:1", "--from", "last:1", "--index"]])
def test_a_command_ends_within_5_s_of_its_connection_to_a_silent_server(command: list[str]) -> None:
    accepted: list[float] = []

    def serve(sock: socket.socket) -> None:
        accepted.append(time.monotonic())
        while sock.recv(100):
            pass

    with Peer(serve) as silent, started([*command, silent.address], stdin=-1) as process:
        process.stdin.write(b"hello\n")
        process.stdin.close()
        assert process.wait(PATIENCE) == 1
        assert time.monotonic() - accepted[0] < 5
        assert len(accepted) == 1


def test_put_raw_takes_any_answer_for_an_error(stream: StreamUnderTest) -> None:
    for port in ("acks", "index"):
        ended = run([*PUT, getattr(stream, port), "--raw"], b"hello\n")
        assert ended.returncode == 1
        assert b"raw port is 4322" in ended.stderr
        assert f"({PORTS[port].number})".encode() in ended.stderr


def consume(address: str) -> None:
    with Consumer(address) as consumer:
        next(iter(consumer))


def consume_awaited(address: str) -> None:
    async def scenario() -> None:
        async with AsyncConsumer(address) as consumer:
            await anext(aiter(consumer))

    asyncio.run(scenario())


def produce(address: str) -> None:
    with Producer(address, "n") as producer:
        producer.send(b"hello").result(PATIENCE)


def produce_awaited(address: str) -> None:
    async def scenario() -> None:
        async with AsyncProducer(address, "n") as producer:
            await (await producer.send(b"hello"))

    asyncio.run(scenario())


def look_up(address: str) -> None:
    with Index(address) as index:
        index.count()


def look_up_awaited(address: str) -> None:
    async def scenario() -> None:
        async with AsyncIndex(address) as index:
            await index.count()

    asyncio.run(scenario())


LIBRARY: dict[str, tuple[str, Callable[[str], None]]] = {
    "Consumer": ("broadcast", consume),
    "Consumer, awaited": ("broadcast", consume_awaited),
    "Producer": ("acks", produce),
    "AsyncProducer": ("acks", produce_awaited),
    "Index": ("index", look_up),
    "AsyncIndex": ("index", look_up_awaited),
}


@pytest.mark.parametrize(
    ("client", "port"),
    [
        pytest.param(client, port, id=f"{client} at the {PORTS[port].name} port")
        for client, (role, _) in LIBRARY.items()
        for port in PORTS
        if port != role
    ],
)
def test_the_library_at_a_wrong_port_raises(stream: StreamUnderTest, client: str, port: str) -> None:
    role, use = LIBRARY[client]
    before = stream.content()
    begin = time.monotonic()
    with pytest.raises(WrongPortError, match=f"{PORTS[role].name} port is {PORTS[role].number}"):
        use(getattr(stream, port))
    assert time.monotonic() - begin < 5
    assert stream.content() == before


@pytest.mark.parametrize("client", LIBRARY)
def test_the_library_at_the_right_port_works(stream: StreamUnderTest, client: str) -> None:
    role, use = LIBRARY[client]
    before = len(stream.content())
    use(getattr(stream, role))
    assert (len(stream.content()) > before) == (role == "acks"), "only producers add messages"


# --- servers of all kinds


def reset(sock: socket.socket) -> None:
    """As the raw port does with a client that is not for it."""
    sock.recv(100)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def close(sock: socket.socket) -> None:
    """As a broadcaster does with what is no header."""
    sock.recv(100)
    sock.close()


def says(data: bytes, *, slowly: bool = False) -> Callable[[socket.socket], None]:
    """It answers with this whatever it is sent, and stays."""

    def serve(sock: socket.socket) -> None:
        sock.recv(100)
        if slowly:
            for byte in data:
                sock.sendall(bytes([byte]))
                time.sleep(0.01)
        else:
            sock.sendall(data)
        while sock.recv(100):
            pass

    return serve


STRANGERS = {
    "reset": (reset, r"raw port \(4322\)"),
    "closed": (close, "closes connections"),
    "HTTP": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "an HTTP server"),
    "SSH, byte by byte": (says(b"SSH-2.0-OpenSSH_9\r\n", slowly=True), "an SSH server"),
    "TLS": (says(b"\x15\x03\x01\x00\x02\x02\x46"), "a TLS server"),
    "a line without an end": (says(b"y" * 200_000), "yyyy"),
}


@pytest.mark.parametrize(
    ("client", "stranger"),
    [
        pytest.param(client, stranger, id=f"{client} at {stranger}")
        for client in LIBRARY
        for stranger in STRANGERS
        # To close is a broadcaster's proof: its connections are then tried again, ever more slowly.
        if not (client.startswith("Consumer") and stranger == "closed")
    ],
)
def test_what_answers_is_named(client: str, stranger: str) -> None:
    serve, words = STRANGERS[stranger]
    with Peer(serve) as peer, pytest.raises(WrongPortError, match=words):
        LIBRARY[client][1](peer.address)


def test_a_server_that_is_being_restarted_is_no_wrong_port(stream: StreamUnderTest, tmp_path: Path) -> None:
    """Its connections are closed or reset before the greeting, then refused, then it greets."""
    del stream
    with StreamUnderTest(tmp_path / "s.log") as restarted:
        with Peer(reset) as dying:
            address = dying.address
            producer = Producer(address, "n")
            receipt = producer.send(b"hello")
            wait_until(lambda: dying.accepted >= 2)
        restarted.listen_at("tailsrv-collate", ["127.0.0.1:0", address])
        assert restarted.acks == address
        assert receipt.result(PATIENCE) == 0
        producer.close()


def test_a_wrong_address_beside_a_right_one_is_reported_and_left_out(
    stream: StreamUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tailsrv_client")
    accepted = 0

    def refuse(sock: socket.socket) -> None:
        nonlocal accepted
        accepted += 1
        says(b"HTTP/1.1 400\r\n")(sock)

    with StreamUnderTest(stream.path.parent / "other.log") as own, Peer(refuse) as wrong:
        with Producer([own.acks, wrong.address], "n") as producer:
            producer.send(b"one").result(PATIENCE)
            address = own.acks
            own.kill("tailsrv-collate")
            receipt = producer.send(b"two")
            wait_until(lambda: "left out" in caplog.text)
            assert own.acks == address
            receipt.result(PATIENCE)
        assert accepted == 1
        assert own.content() == b"one\ntwo\n"


def test_a_proven_collator_that_does_not_greet_is_waited_for() -> None:
    """It may be out of disk space for hours."""
    greetings = 0
    silent = threading.Event()

    def serve(sock: socket.socket) -> None:
        nonlocal greetings
        sock.recv(100)
        greetings += 1
        if greetings == 2:
            silent.set()
            while sock.recv(100):
                pass
            return
        sock.sendall(b"0 0\n")
        if greetings > 2:
            sock.sendall(b"%d %d\n" % ((len(sock.recv(100)),) * 2))
            sock.recv(1)
        sock.close()

    with Peer(serve) as collator:
        producer = Producer(collator.address, "n")
        assert silent.wait(PATIENCE)
        assert producer.send(b"hello").result(PATIENCE) == 0
        producer.close()


def test_a_busy_collator_is_tried_again_and_any_other_error_is_final() -> None:
    answers = [b"error: busy, try again later\n", b"0 0\nerror: busy\n", b"error: the name is reserved\n"]

    def serve(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(answers.pop(0))

    with Peer(serve) as collator:
        producer = Producer(collator.address, "n")
        with pytest.raises(ProducerRefused, match="reserved"):
            producer.send(b"hello").result(PATIENCE)
        assert not answers
        producer.close()


@pytest.mark.parametrize("place", ["absent", "empty", "unix"])
def test_a_broadcaster_proves_itself_whatever_it_has_to_say(tmp_path: Path, place: str) -> None:
    path = tmp_path / "s.log"
    if place != "absent":
        path.touch()
    at = f"unix:{tmp_path}/socket" if place == "unix" else "127.0.0.1:0"
    with Daemon("tailsrv", path, "--listen", at) as tailsrv, Consumer(tailsrv.addresses[0]) as consumer:
        begin = time.monotonic()
        consumer.check()
        threading.Timer(0.3, lambda: path.write_bytes(b"hello\n")).start()
        assert next(iter(consumer)).payload == b"hello"
        assert time.monotonic() - begin < 5


def test_a_unix_socket_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    """Connect says EAGAIN at once, and nothing tells when there is room."""
    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(path)
        consumer = Consumer(f"unix:{path}", until="count:1")

        def serve() -> None:
            for answer in (None, b"", b"hello\n"):
                sock, _ = listener.accept()
                with sock:
                    if answer is not None:
                        sock.recv(100)
                        sock.sendall(answer)

        uses: list[Callable[[], list[Any]]] = [
            lambda: read_all(consumer),
            lambda: asyncio.run(collect(AsyncConsumer(f"unix:{path}", until="count:1"))),
        ]
        for use in uses:
            timer = threading.Timer(0.3, serve)
            timer.start()
            assert [message.payload for message in use()] == [b"hello"]
            timer.join()
            first.close()
            with socket.socket(socket.AF_UNIX) as filling:
                filling.connect(path)
    listener.close()


def read_all(consumer: Consumer) -> list[Any]:
    with consumer:
        return list(consumer)


async def collect(consumer: AsyncConsumer) -> list[Any]:
    async with consumer:
        return [message async for message in consumer]


def test_the_proof_is_asked_for_once_and_costs_one_connection() -> None:
    """A client that reconnects does not prove again what it knows."""
    headers: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        headers.append(sock.recv(100))
        if headers[-1] != b"0 0\n":
            sock.sendall(b"line\n")
        sock.close()

    with Peer(serve) as server, Consumer(server.address, until="count:1") as consumer:
        assert len(list(consumer)) == 1
        assert headers == [b"0 0\n", b"0\n"]


def test_a_proxy_without_a_server_is_not_hammered() -> None:
    """It accepts and closes at once, which is also a broadcaster's proof."""
    with Peer(socket.socket.close) as proxy:
        consumer = Consumer(proxy.address)
        threading.Timer(1.0, consumer.stop).start()
        assert read_all(consumer) == []
        assert proxy.accepted < 10


def test_a_collator_that_greets_and_closes_is_not_hammered() -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b"0 0\n")
        sock.shutdown(socket.SHUT_WR)

    with Peer(serve) as collator:
        producer = Producer(collator.address, "n")
        producer.send(b"hello")
        with pytest.raises(TimeoutError):
            producer.flush(1.5)
        producer.close()
        assert collator.accepted < 10


# --- names and default ports


@pytest.mark.parametrize("command", [[*CAT], [*PUT], [*PUT, "--raw"]])
def test_a_host_that_is_not_known_is_an_error_at_once(command: list[str]) -> None:
    ended = run([*command, "no-such-host.invalid"], b"hello\n")
    assert ended.returncode == 1
    assert ended.stderr.count(b"\n") == 1
    assert b"'no-such-host.invalid' cannot be resolved" in ended.stderr


@pytest.mark.parametrize("client", LIBRARY)
def test_the_library_raises_for_a_host_that_is_not_known(client: str) -> None:
    with pytest.raises(UnknownHostError, match="no-such-host"):
        LIBRARY[client][1]("no-such-host.invalid")


def test_one_host_that_is_known_is_enough(stream: StreamUnderTest) -> None:
    consume(f"no-such-host.invalid,{stream.broadcast}")
    produce(f"no-such-host.invalid,{stream.acks}")
    look_up(f"no-such-host.invalid,{stream.index}")


def test_a_host_that_was_known_once_is_asked_for_again() -> None:
    rotation = Rotation(Servers([Address("a", 1)]))
    rotation.connected()
    rotation.failed(EndedError("ended"))
    assert rotation.failed(socket.gaierror(socket.EAI_AGAIN, "no DNS")) > 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("fileserver", Address("fileserver", 4323)),
        ("fileserver:1", Address("fileserver", 1)),
        ("10.0.0.1", Address("10.0.0.1", 4323)),
        ("::1", Address("::1", 4323)),
        ("fe80::1%eth0", Address("fe80::1%eth0", 4323)),
        ("[::1]", Address("::1", 4323)),
        ("[::1]:1", Address("::1", 1)),
        (":1", Address("", 1)),
        ("unix:/run/x", Address(path="/run/x")),
    ],
)
def test_a_host_alone_means_the_default_port_of_the_role(text: str, address: Address) -> None:
    assert parse_addresses(text, ACKNOWLEDGED) == (address,)
    assert parse_addresses(f"{text}, other", ACKNOWLEDGED)[1] == Address("other", 4323)


@pytest.mark.parametrize(
    "text", ["", "4323", "host:", "host:x", "a:b:c", "[host]", "::1:80:", "two words", "a,,b", "h\0"]
)
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="HOST"):
        parse_addresses(text, ACKNOWLEDGED)


def test_every_client_has_the_default_port_of_its_role() -> None:
    assert Consumer("h", index="i")._rotation.address.port == 4321
    assert Index("h")._rotation.address.port == 4324
    assert AsyncIndex("h")._rotation.address.port == 4324
    producer = Producer("localhost", "n")
    assert producer._session_thread._rotation.address.port == 4323
    producer.close()
    handler = TailsrvHandler("localhost", close_seconds=0)
    assert handler._producer is not None
    assert handler._producer._session_thread._rotation.address.port == 4323
    handler.close()


# --- the rules, without a socket


class Clock:
    """What time it is."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def unverified(clock: Clock, *hosts: str) -> Rotation:
    return Rotation(Servers([Address(host, 1) for host in hosts], ACKNOWLEDGED, clock=clock), rng=lambda: 1.0)


def test_connections_that_end_early_are_tried_again_for_a_few_seconds_and_no_longer() -> None:
    clock = Clock()
    rotation = unverified(clock, "a")
    ends = clock.now + ENDED_SECONDS

    def end_for_ever() -> None:
        while clock.now <= ends:
            rotation.connected()
            clock.now += rotation.failed(EndedError("ended"))

    with pytest.raises(WrongPortError):
        end_for_ever()
    assert clock.now == ends


def test_a_refused_connection_begins_the_patience_with_early_ends_again() -> None:
    clock = Clock()
    rotation = unverified(clock, "a")
    for _ in range(20):
        rotation.connected()
        rotation.failed(ConnectionResetError())
        clock.now += ENDED_SECONDS - 0.1
        rotation.failed(ConnectionRefusedError())
        assert not rotation.servers.ended_since, "the time with early ends is counted from zero again"


def test_only_a_verified_address_makes_another_ones_mistake_harmless() -> None:
    clock = Clock()
    rotation = unverified(clock, "a", "b")
    rotation.connected()
    with pytest.raises(WrongPortError):
        rotation.failed(SilentError())
    rotation.failed()
    rotation.set_verified()
    rotation.failed()
    rotation.connected()
    assert rotation.failed(wrong_port(rotation.address, ACKNOWLEDGED, "x")) == 0
    assert [str(one) for one in rotation.servers.addresses] == ["b:1"]
    for error in (SilentError(), EndedError(), ConnectionResetError(), TimeoutError()):
        rotation.connected()
        rotation.failed(error)


def test_what_a_greeting_may_begin_with() -> None:
    for good in (b"", b"1", b"12 ", b"0 0", b"0 0\r", b"0 0\r\n", b"0 0\n", b"e", b"error: ", b"error: busy\n"):
        assert greets(good), good
    for bad in (b"x", b" ", b"+1 0\n", b"1\n", b"1 2 3", b"0 0\n0", b"9" * 20, b"errors", b"error: write N, -N, or\n"):
        assert not greets(bad), bad


def test_what_a_peer_says_is_shown_without_its_control_characters() -> None:
    assert "\x1b" not in answered(b"\x1b[31m red\x00\n")
    assert GREETING_SECONDS < 5
    assert ENDED_SECONDS < 5


def test_a_reader_is_owed_what_is_known_to_exist() -> None:
    reader = Reader(Position(0))
    assert not reader.expects_bytes
    reader.known_end = 5
    assert reader.expects_bytes
    reader.header()
    reader.received(b"12345")
    assert not reader.expects_bytes


def test_a_producer_that_ends_is_logged_though_nobody_asks_it(caplog: pytest.LogCaptureFixture) -> None:
    """As that of a logging handler, whose caller sees no exception."""
    caplog.set_level(logging.WARNING, "tailsrv_client")
    with Peer(says(b"HTTP/1.1 400\r\n")) as server:
        handler = TailsrvHandler(server.address, close_seconds=0)
        wait_until(lambda: "is not the acknowledged port" in caplog.text)
        handler.close()
    assert caplog.text.count("producer ended: ") == 1


def test_a_broadcaster_behind_a_proxy_proves_itself(stream: StreamUnderTest) -> None:
    """It passes the end of a connection on, as haproxy and the like do."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other direction has ended, and both sockets with it
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(sock: socket.socket) -> None:
        host, _, port = stream.broadcast.rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            there = threading.Thread(target=lambda: pass_on(sock, server), daemon=True)
            there.start()
            pass_on(server, sock)
            there.join(PATIENCE)

    with Peer(serve) as proxy, Consumer(proxy.address, until="count:10") as consumer:
        assert len(list(consumer)) == 10
