"""Connections that hold incomplete messages: what an attacker with many addresses, or a fleet of hung shippers, does.

    python -m bench.holders PORT COUNT BYTES PER_SECOND

Keeps COUNT connections to the raw port of a collator, each with an incomplete message of BYTES, and opens PER_SECOND
new ones in the place of the oldest. Prints a line when all are there, and ends with its standard input.
"""

from __future__ import annotations

import collections
import contextlib
import select
import socket
import sys
import time

SLICE_SECONDS = 0.02


def main() -> None:
    """Hold."""
    port, count, size, rate = (int(word) for word in sys.argv[1:5])
    message = b"x" * size
    held: collections.deque[socket.socket] = collections.deque()

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        with contextlib.suppress(OSError):
            sock.sendall(message)
        held.append(sock)

    for _ in range(count):
        connect()
    print("ready", flush=True)
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], SLICE_SECONDS)[0]:
        now = time.monotonic()
        while due < now:
            due += 1 / rate
            held.popleft().close()  # the oldest: the collator has closed it, or is about to
            connect()


if __name__ == "__main__":
    main()
