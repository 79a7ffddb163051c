"""Connections that hold incomplete messages: what an attacker with many addresses, or a fleet of hung shippers, does.

    python -m bench.holders PORT COUNT BYTES PER_SECOND

Keeps COUNT connections to the raw port of a collator, each with an incomplete message of BYTES, and opens PER_SECOND
new ones in the place of the oldest. Prints a line when all are there, and ends with its standard input. With PORT 0
it connects to itself: what that costs is the machine's part, in which no collator has a hand.
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
    held: collections.deque[tuple[socket.socket, ...]] = collections.deque()
    own = None if port else socket.create_server(("127.0.0.1", 0))
    if own is not None:
        port = own.getsockname()[1]

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        with contextlib.suppress(OSError):
            sock.sendall(message)
        held.append((sock,) if own is None else (sock, own.accept()[0]))

    for _ in range(count):
        connect()
    print("ready", flush=True)
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], SLICE_SECONDS)[0]:
        now = time.monotonic()
        while due < now:
            due += 1 / rate
            for sock in held.popleft():  # the oldest: the collator has closed it, or is about to
                sock.close()
            connect()


if __name__ == "__main__":
    main()
