"""On asyncio, what is closed wakes who waits for it, and the loop forgets its descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tailsrv_client import AsyncConsumer, AsyncIndex, AsyncProducer, CheckpointError
from tests.support.streams import Peer, StreamUnderTest, append, lines, unsent
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def test_an_index_can_be_opened_and_closed_again_and_again(stream: StreamUnderTest) -> None:
    append(stream.path, lines(0, 10))
    address = stream.index

    async def scenario() -> None:
        for _ in range(4):
            async with asyncio.timeout(PATIENCE / 2), AsyncIndex(address, timeout=PATIENCE) as index:
                assert await index.count() in {0, 10}  # it may not have looked yet

    asyncio.run(scenario())


def test_closing_an_index_ends_the_look_ups_that_wait_and_those_that_are_being_sent() -> None:
    """The server takes nothing: what is sent fills its queue."""

    async def scenario(address: str) -> list[object]:
        async with AsyncIndex(address, timeout=PATIENCE) as index:
            asking = [asyncio.create_task(index.ask({"time": 0, "padding": "x" * 3_000_000})) for _ in range(3)]
            await asyncio.to_thread(full.wait, PATIENCE)
            await index.close()
            async with asyncio.timeout(PATIENCE / 2):
                done = await asyncio.gather(*asking, return_exceptions=True)
            return list(done)

    def serve(sock: socket.socket) -> None:
        sock.recv(10)  # the first request is under way, and longer than the queues are
        full.set()
        closed.wait(PATIENCE)

    full, closed = threading.Event(), threading.Event()
    with Peer(serve, proves="index") as peer:
        found = asyncio.run(scenario(peer.address))
        closed.set()
    assert found
    assert all(isinstance(one, OSError) for one in found)


@pytest.mark.parametrize("where", ["here", "another thread"])
def test_closing_a_consumer_ends_the_loop_that_waits_for_it(stream: StreamUnderTest, where: str) -> None:
    append(stream.path, b"one\n")

    async def scenario() -> None:
        consumer, consuming = await _consumer_that_waits(stream.broadcast)
        if where == "here":
            await consumer.close()
        else:
            await asyncio.to_thread(consumer.stop)
        async with asyncio.timeout(PATIENCE / 2):
            await consuming
        assert consumer.finished
        await hears_on_all_numbers()

    asyncio.run(scenario())


@pytest.mark.parametrize("where", ["here", "another thread"])
def test_closing_a_consumer_that_still_connects_ends_its_loop(where: str) -> None:
    """The server says nothing, and so has not proved what it is."""

    async def scenario(address: str) -> list[bytes]:
        consumer = AsyncConsumer(address)

        async def consume() -> list[bytes]:
            return [message.payload async for message in consumer]

        consuming = asyncio.create_task(consume())
        await asyncio.to_thread(reached.wait, PATIENCE)
        if where == "here":
            await consumer.close()
        else:
            await asyncio.to_thread(consumer.stop)
        async with asyncio.timeout(PATIENCE / 2):
            return await consuming

    def serve(sock: socket.socket) -> None:
        sock.recv(10)
        reached.set()
        closed.wait(PATIENCE)

    reached, closed = threading.Event(), threading.Event()
    with Peer(serve) as peer:
        assert asyncio.run(scenario(peer.address)) == []
        closed.set()


def test_a_consumer_that_is_closed_while_the_loop_does_not_run_leaves_nothing_in_it(stream: StreamUnderTest) -> None:
    append(stream.path, b"one\n")
    loop = asyncio.new_event_loop()
    try:
        consumer, consuming = loop.run_until_complete(_consumer_that_waits(stream.broadcast))
        consumer.stop()
        loop.run_until_complete(hears_on_all_numbers())
        loop.run_until_complete(consuming)
        assert consumer.finished
    finally:
        loop.close()


async def _consumer_that_waits(address: str) -> tuple[AsyncConsumer, asyncio.Task[None]]:
    consumer = AsyncConsumer(address)
    got_one = asyncio.Event()

    async def consume() -> None:
        async for _ in consumer:
            got_one.set()

    consuming = asyncio.create_task(consume())
    await got_one.wait()
    await asyncio.sleep(0)
    return consumer, consuming


async def hears_on_all_numbers() -> None:
    """New sockets, which have the numbers of those that were closed, are heard of."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            ours, theirs = (stack.enter_context(sock) for sock in socket.socketpair())
            ours.setblocking(False)
            hearing = asyncio.create_task(loop.sock_recv(ours, 10))
            await asyncio.sleep(0)  # it waits now
            theirs.send(b"hello")
            async with asyncio.timeout(PATIENCE / 2):
                assert await hearing == b"hello"


def test_damage_of_a_spool_that_is_found_while_sending_ends_an_awaited_producer(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    path = tmp_path / "spool"
    address = unsent(stream, path)

    async def scenario() -> None:
        producer = AsyncProducer(address, "a", spool=str(path))
        await producer.send(b"one more")  # it is loaded now
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"XXXXXXXXXXXXXXXX")
        await asyncio.to_thread(getattr, stream, "acks")
        async with asyncio.timeout(PATIENCE / 2):
            with pytest.raises(CheckpointError, match=f"{path} is damaged at byte"):
                await producer.flush()
        await producer.close()

    asyncio.run(scenario())
    assert lines(0, 100_000).startswith(stream.content())
