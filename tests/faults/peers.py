"""Producers that are many, slow, greedy or gone, and a collator that is stopped for a while."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.faults.daemon import Target
from tests.faults.fixtures import small_tmpfs
from tests.faults.follower import MarkFollower
from tests.faults.load import Load
from tests.faults.scenario import FINISH_SECONDS, Bench, Plan, Row, folder, make_streams, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.daemon import Address, Daemon

_MEBIBYTE: Final = 1 << 20
_ALLOWANCE: Final = 64 * _MEBIBYTE  # what a collator may hold beside --buffer-bytes
_RESET: Final = struct.pack("ii", 1, 0)


def peak_bytes(daemon: Daemon) -> int:
    """The most memory that the process has ever held, by the kernel's own account."""
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def raise_file_limit() -> None:
    """Allow this process as many descriptors as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def stopped(plan: Plan) -> Iterator[Row]:
    """SIGSTOP, SIGCONT: producers wait, and go on."""
    seconds = plan.times(1, 60)
    row = Row("stopped", f"SIGSTOP for {seconds} s", runs=1)
    with timed(row), folder() as home, Bench(home, plan.subject) as bench:
        with bench.start() as daemon:
            bench.serve(daemon)
            bench.load.wait_promised(_MEBIBYTE, 10)
            daemon.signal(signal.SIGSTOP)
            while bench.load.wait_promised(1, 0.3):
                pass
            threading.Event().wait(seconds)
            daemon.signal(signal.SIGCONT)
            if not bench.load.wait_promised(_MEBIBYTE, 10):
                bench.broke("nothing is acknowledged any more after SIGCONT")
            bench.kill(daemon)
        bench.settle()
        row.findings.add(bench.findings)
    yield row


def crowd(plan: Plan) -> Iterator[Row]:
    """Let very many producers connect at once, each with something to say."""
    raise_file_limit()
    count = plan.times(300, 2_000)
    row = Row("crowd", f"{count} producers at once", runs=1)
    with timed(row), folder() as home:
        target = Target()
        load = Load(target, make_streams("newline", 3, count=count, size=200), messages=20, window=1 << 12)
        with Bench(home, plan.subject, load=load) as bench:
            with bench.start() as daemon:
                bench.serve(daemon)
                if not bench.load.wait_promised(count * 1_000, FINISH_SECONDS):
                    bench.broke(f"{count} producers do not get on")
                row.remark = f"peak {peak_bytes(daemon) >> 20} MiB"
            bench.target.move(None)
            bench.settle()
            row.findings.add(bench.findings)
    yield row


class Drip(threading.Thread):
    """Connections that say their name and then send one byte of an endless message each second."""

    def __init__(self, address: Address, count: int, period: float) -> None:
        super().__init__(daemon=True)
        self._sockets = [socket.create_connection(address) for _ in range(count)]
        self._stop_event = threading.Event()
        self._period = period
        for number, sock in enumerate(self._sockets):
            sock.sendall(b"drip-%d\n" % number)
        self.heard = [sock.recv(64) for sock in self._sockets]
        self.start()

    def run(self) -> None:
        while not self._stop_event.wait(self._period):
            for sock in self._sockets:
                sock.send(b"x")

    def end(self) -> None:
        """Break them off, each inside its message."""
        self._stop_event.set()
        self.join()
        for sock in self._sockets:
            sock.close()


def _throughput(bench: Bench, seconds: float) -> float:
    """Bytes a second that the eight producers get acknowledged."""
    before = sum(bench.load.promised.values())
    began = time.monotonic()
    threading.Event().wait(seconds)
    return (sum(bench.load.promised.values()) - before) / (time.monotonic() - began)


def slow(plan: Plan) -> Iterator[Row]:
    """Let some producers send a byte a second: the others must not feel it, and nothing of theirs is appended."""
    count = plan.times(20, 200)
    seconds = plan.times(1, 10)
    row = Row("slow producers", f"{count} of a byte a second", runs=1)
    with timed(row), folder() as home, Bench(home, plan.subject) as bench:
        with bench.start() as daemon:
            bench.serve(daemon)
            address = bench.target.address
            if address is None:
                raise AssertionError("served, so there is an address")
            bench.load.wait_promised(_MEBIBYTE, 10)
            alone = _throughput(bench, seconds)
            drip = Drip(address, count, 1.0)
            if any(line != b"0 0\n" for line in drip.heard):
                bench.broke(f"a new producer hears {drip.heard[:3]}")
            together = _throughput(bench, seconds)
            drip.end()
            row.remark = f"others at {together / max(alone, 1):.2f} of before"
            if together < alone / 3:
                bench.broke(f"slow producers hinder the others: {alone:.0f} B/s before, {together:.0f} B/s beside them")
            bench.kill(daemon)
        bench.settle()
        row.findings.add(bench.findings)
    yield row


def _come_and_go(address: Address, count: int) -> None:
    """Connect and leave: at once, after half a name, after a name, inside a message; by FIN and by reset."""
    says = (b"", b"brief", b"brief-%d\n", b"brief-%d\nhalf a mess", b"\n", b"\nhalf", b"bad name!\n")
    for number in range(count):
        with socket.create_connection(address) as sock:
            word = says[number % len(says)]
            sock.send(word % number if b"%d" in word else word)
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def churn(plan: Plan) -> Iterator[Row]:
    """Let thousands connect and go while eight producers send."""
    raise_file_limit()
    count = plan.times(1_000, 10_000)
    row = Row("churn", f"{count} connect and go", runs=1)
    with timed(row), folder() as home, Bench(home, plan.subject) as bench:
        with bench.start() as daemon:
            bench.serve(daemon)
            address = bench.target.address
            if address is None:
                raise AssertionError("served, so there is an address")
            before = sum(bench.load.promised.values())
            _come_and_go(address, count)
            if sum(bench.load.promised.values()) <= before or not bench.load.wait_promised(_MEBIBYTE, 10):
                bench.broke("short connections keep the producers from sending")
            left, deadline = _descriptors(daemon), time.monotonic() + 10
            while left > 60 and time.monotonic() < deadline:  # the last of them may still be on their way out
                time.sleep(0.02)
                left = _descriptors(daemon)
            row.remark = f"{left} descriptors after, peak {peak_bytes(daemon) >> 20} MiB"
            if left > 60:
                bench.broke(f"{left} descriptors are open after all short connections have ended")
            bench.kill(daemon)
        bench.settle()
        row.findings.add(bench.findings)
    yield row


def _push(sockets: list[socket.socket], data: bytes, longest: float, *, quiet: float = 1.0) -> None:
    """Send to all in turn until none takes anything for `quiet` seconds, or all are closed; in `longest` seconds."""
    deadline = time.monotonic() + longest
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, sock)
        while selector.get_map() and time.monotonic() < deadline and (ready := selector.select(quiet)):
            for key, _ in ready:
                try:
                    key.data.send(data)
                except BlockingIOError:
                    continue
                except OSError:
                    selector.unregister(key.data)


def memory(plan: Plan) -> Iterator[Row]:
    """Offer far more than --buffer-bytes, whole messages on a full disk and unfinished ones: memory is bounded."""
    raise_file_limit()
    limit = 16 * _MEBIBYTE
    count = plan.times(100, 500)
    for variant, data in (("full disk", b"m" * 999 + b"\n"), ("unfinished messages", b"u" * 1_000)):
        row = Row("memory", f"{count} producers, {variant}", runs=1)
        with timed(row), folder() as home, small_tmpfs("size=2m") as place:
            file = place / "stream.log"
            target = Target()
            load = Load(target, make_streams("newline", 5, count=1, size=100), messages=1)
            options = ("--buffer-bytes", str(limit))
            with Bench(
                home, plan.subject, file=file, load=load, follower=MarkFollower(file, home / "seen"), options=options
            ) as bench:
                with bench.start() as daemon:
                    bench.serve(daemon)
                    bench.load.wait_promised(1, 10)
                    sockets = [socket.create_connection(daemon.addresses[0]) for _ in range(count)]
                    for number, sock in enumerate(sockets):
                        sock.sendall(b"greedy-%d\n" % number)
                    _push(sockets, data * 64, plan.times(3, 20))
                    peak = peak_bytes(daemon)
                    row.remark = f"peak {peak >> 20} MiB, --buffer-bytes {limit >> 20} MiB"
                    if peak > limit + _ALLOWANCE:
                        bench.broke(f"it held {peak} bytes")
                    for sock in sockets:
                        sock.close()
                    if daemon.process.poll() is not None:
                        bench.broke(f"it ended with {daemon.process.returncode}: {daemon.said()[-300:]}")
                row.findings.add(bench.findings)
        yield row
