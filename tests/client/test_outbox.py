"""Promises of what is kept in memory: found again in few steps, however it came."""

from __future__ import annotations

import random

from tailsrv_client.protocol.outbox import CHUNK_BYTES, Memory


def backlog(messages: int) -> Memory:
    """Messages at a low rate: each is read, so that it can be sent, before the next one comes."""
    memory = Memory()
    for number in range(messages):
        memory.append(b"%06d\n" % number)
        assert memory.read(number * 7, 1 << 18) == b"%06d\n" % number
    return memory


def steps(memory: Memory) -> int:
    """How many reads it takes to send all of it again."""
    position = memory.start
    count = 0
    while position < memory.end:
        position += len(memory.read(position, 1 << 18))
        count += 1
    return count


def test_a_backlog_of_single_messages_is_sent_again_in_a_few_large_pieces() -> None:
    """Twice the backlog takes twice the reads at most, and each looks at the logarithm of a few chunks."""
    some, twice = backlog(50_000), backlog(100_000)
    assert steps(some) <= 50_000 * 7 // (CHUNK_BYTES // 4) + 20
    assert steps(twice) <= 2 * steps(some) + 5
    assert len(twice._chunks) <= 100_000 * 7 // (CHUNK_BYTES // 4) + 20


def test_whatever_is_read_and_discarded_it_is_what_was_appended() -> None:
    rng = random.Random(5)
    memory, whole = Memory(), b""
    for _ in range(5000):
        data = rng.randbytes(rng.choice((1, 10, 500, 5000)))
        memory.append(data)
        whole += data
        if rng.random() < 0.5:
            position = rng.randint(memory.start, len(whole) - 1)
            found = bytes(memory.read(position, 1 << 16))
            assert found
            assert whole.startswith(found, position)
        if rng.random() < 0.1:
            memory.discard(rng.randint(memory.start, len(whole)))
            assert sum(map(len, memory._chunks)) <= len(whole) - memory.start + 2 * CHUNK_BYTES
    assert bytes(memory.read(len(whole), 10)) == b""
    memory.discard(len(whole))
    assert memory._chunks == []
    memory.append(b"more")
    assert bytes(memory.read(len(whole), 10)) == b"more"
