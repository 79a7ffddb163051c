"""One soak: start a broadcaster, let everybody at it, and compare what it holds before and after."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tests.soak.clients import KINDS, check, connect
from tests.soak.harsh import Harsh, torn_lines
from tests.soak.stream import content
from tests.support.daemons import Daemon
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from tests.soak.clients import Client

STREAM_BYTES = 32 << 20
"""How far the stream grows; then it is a matter of clients alone."""

LINGER_SECONDS = 15.0
"""After that, what clients have left behind is gone."""


class Holds(msgspec.Struct, frozen=True):
    """What a process holds."""

    descriptors: int
    threads: int
    memory: int
    """Resident set, in bytes."""


class Outcome(msgspec.Struct):
    """What a soak found."""

    visits: dict[str, int]
    received: int
    before: Holds
    after: Holds
    errors: list[str]


def holds(daemon: Daemon) -> Holds:
    """What the daemon holds now."""
    return Holds(daemon.descriptors(), len(os.listdir(f"/proc/{daemon.pid}/task")), daemon.memory())


class Soak:
    """Clients of all kinds, each kind in threads of its own."""

    def __init__(self, daemon: Daemon, path: Path, seed: int) -> None:
        self.visits = dict.fromkeys(KINDS, 0)
        self.received = 0
        self.errors: list[str] = []
        self._daemon = daemon
        self._path = path
        self._seed = seed
        self._counting = threading.Lock()

    def let_in(self, seconds: float) -> None:
        """Have them visit for so long, and all leave; the stream grows meanwhile."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._visit, args=(kind, end)) for kind in KINDS for _ in range(2)]
        threads += [threading.Thread(target=self._append, args=(end,)), threading.Thread(target=self._follow)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _visit(self, kind: str, end: float) -> None:
        client: Client = KINDS[kind]
        self._seed += 1
        source = random.Random(self._seed)
        while time.monotonic() < end and not self.errors:
            try:
                received = client(self._daemon.port(), self._path.stat().st_size, source)
            except (OSError, AssertionError) as error:
                self.errors.append(f"{kind}: {error!r}")
                return
            with self._counting:
                self.visits[kind] += 1
                self.received += received

    def _append(self, end: float) -> None:
        source = random.Random(self._seed)
        with self._path.open("ab", buffering=0) as file:
            position = file.tell()
            while time.monotonic() < end and not self.errors:
                if position < STREAM_BYTES:
                    position += file.write(content(position, source.choice([1, 100, 4096, 100_000])))
                time.sleep(0.01)
            file.write(content(position, 1))
            self._last = file.tell()

    def _follow(self) -> None:
        """A client that is there all the time."""
        start = self._path.stat().st_size
        with connect(self._daemon.port()) as sock:
            sock.sendall(b"%d\n" % start)
            self._last = 0
            position = start
            while not self._last or position < self._last:
                try:
                    position += check(sock, position, self._path.stat().st_size - position)
                except (OSError, AssertionError) as error:
                    self.errors.append(f"follower: {error!r}")
                    return
                time.sleep(0.01)


def flood(port: int, rate: float, seconds: float) -> int:
    """Connect and disconnect so often a second; how often it was in the end."""
    begin, count = time.monotonic(), 0
    while (now := time.monotonic()) - begin < seconds:
        while count < (now - begin) * rate:
            with socket.socket() as sock:
                # Many addresses of loopback: one has no more than 28,000 ports to connect from.
                sock.bind((f"127.0.0.{count % 100 + 1}", 0))
                sock.connect(("127.0.0.1", port))
            count += 1
        time.sleep(0.0005)
    return count


def soak(seconds: float, *, flood_seconds: float, flood_rate: float, harsh: bool = False, seed: int = 1) -> Outcome:
    """Warm up for a third of the time, note what the daemon holds, go on, and note it again.

    `harsh`: while the clients are there, the daemon is also scraped, probed, signalled, and its log is read in bursts.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stream")
        path.write_bytes(content(0, 4 << 20))
        options = ("--listen", "127.0.0.1:0", "--header-timeout", "2", *(("--metrics", "127.0.0.1:0") if harsh else ()))
        with Daemon("tailsrv", path, *options) as daemon:
            clients = Soak(daemon, path, seed)
            rigours = Harsh(daemon) if harsh else None
            with rigours or contextlib.nullcontext():
                clients.let_in(seconds / 3)
            # Both lanes and both listeners' worth of connections have been there.
            settle(daemon, 0)
            before = holds(daemon)
            with rigours or contextlib.nullcontext():
                clients.let_in(seconds * 2 / 3)
                clients.visits["connection flood"] = flood(daemon.port(), flood_rate, flood_seconds)
            daemon.log()  # what was held back for want of a reader is held no longer
            settle(daemon, before.descriptors)
            after = holds(daemon)
            code = daemon.stop()
            errors = clients.errors + [f"exit code {code}"] * bool(code)
            log = daemon.log()
            errors += ["a traceback in the log"] * ("Traceback" in log)
            if rigours is not None:
                clients.visits |= rigours.counts
                errors += rigours.errors + [f"a torn line in the log: {line}" for line in torn_lines(log)]
            return Outcome(clients.visits, clients.received, before, after, errors)


def settle(daemon: Daemon, descriptors: int) -> None:
    """Wait until what clients have left behind is gone: nothing closes any more."""
    end = time.monotonic() + LINGER_SECONDS
    seen, since = daemon.descriptors(), time.monotonic()

    def settled() -> bool:
        nonlocal seen, since
        now = time.monotonic()
        if daemon.descriptors() != seen:
            seen, since = daemon.descriptors(), now
        return seen <= descriptors or now - since > 2 or now > end

    wait_until(settled, "connections are closed")
