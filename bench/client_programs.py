"""What a user of the Python clients would write, timed: run as children, so that each has an interpreter to itself.

Law: each prints one line of JSON with its figures, as the tools in C do.
"""

from __future__ import annotations

import sys
import time

import msgspec

from tailsrv_client import Consumer, Producer

PAYLOAD = b"x" * 99


def done(messages: int, begin: float) -> None:
    """Print the figures."""
    seconds = time.monotonic() - begin
    figures = {"messages": messages, "seconds": seconds, "messages_per_s": messages / seconds}
    print(msgspec.json.encode(figures).decode())


def batches(address: str, count: int) -> None:
    """Take messages in lists."""
    begin = time.monotonic()
    taken = 0
    with Consumer(address, start="start") as consumer:
        for batch in consumer.batches():
            taken += len(batch)
            if taken >= count:
                break
    done(taken, begin)


def each(address: str, count: int) -> None:
    """Take messages one by one."""
    begin = time.monotonic()
    taken = 0
    with Consumer(address, start="start") as consumer:
        for message in consumer:
            taken += 1
            if not message.payload or taken >= count:
                break
    done(taken, begin)


def produce(address: str, count: int) -> None:
    """Send messages and wait until the last of them is acknowledged."""
    begin = time.monotonic()
    with Producer(address, "bench") as producer:
        for _ in range(count):
            producer.send(PAYLOAD)
        producer.flush()
    done(count, begin)


if __name__ == "__main__":
    program = {"batches": batches, "each": each, "produce": produce}[sys.argv[1]]
    program(sys.argv[2], int(sys.argv[3]))
