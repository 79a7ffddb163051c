"""A disk that does not answer for a while: whoever does not need it is served meanwhile."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.faults.disk_full import health
from tests.faults.fixtures import strace
from tests.faults.scenario import Plan, Row, folder, timed
from tests.faults.traced import small_bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.checker import Findings
    from tests.faults.daemon import Address, Subject
    from tests.faults.scenario import Bench

_SOON: Final = 0.5  # s; the time within which a loop that is free answers, on a busy machine
_CASES: Final = {
    "a lone message": ("always", 1, 100),
    "many producers": ("always", 8, 100),
    "a large batch": ("always", 1, 600_000),
    "an interval": ("interval:20", 1, 100),
}


def _greeted(address: Address, name: str) -> float:
    """Connect as a producer; the seconds until the greeting came."""
    began = time.monotonic()
    with socket.create_connection(address, 20) as sock:
        sock.sendall(name.encode() + b"\n")
        sock.recv(64)
    return time.monotonic() - began


def _connect(address: Address, number: int) -> socket.socket:
    sock = socket.create_connection(address, 20)
    sock.sendall(f"hang-{number}\n".encode())
    sock.recv(64)
    return sock


def hang_run(subject: Subject, case: str, seconds: float) -> Findings:
    """Hold every sync of FILE for some seconds, and see who waits."""
    sync, producers, size = _CASES[case]
    with folder() as home, small_bench(home, subject, framing="newline", sync=sync, messages=0) as bench:
        bench.argv += ["--metrics", f"unix:{home}/metrics"]
        held = f"inject=fdatasync:delay_enter={seconds * 1e6:.0f}"
        wrapper = strace("-e", "trace=fdatasync", "-e", held, "-P", str(bench.file))
        with bench.start(wrapper) as daemon:
            address = daemon.wait_ready(60)
            socks = [_connect(address, number) for number in range(producers)]
            # Each as its own delivery: the first commit holds one of them, and the next all others.
            for sock in socks:
                threading.Thread(target=sock.sendall, args=(b"x" * size + b"\n",), daemon=True).start()
            time.sleep(0.3)  # it hangs now, and that nothing tells us
            _judge(bench, home, address)
            daemon.signal(signal.SIGTERM)
            time.sleep(0.1)
            daemon.signal(signal.SIGTERM)
            began = time.monotonic()
            code = daemon.wait(seconds + 20)
            # The thread that strace holds can't end before strace lets go of it; the log says when the loop ended.
            if code != 0:
                bench.broke(f"a second SIGTERM ended it with {code}: {daemon.said()[-300:]}")
            elif "stopped" not in daemon.said():
                bench.broke("SIGTERM was not obeyed")
            elif time.monotonic() - began > seconds + _SOON:
                bench.broke(f"SIGTERM took {time.monotonic() - began:.1f} s")
            for sock in socks:
                sock.close()
        return bench.findings


def _judge(bench: Bench, home: Path, address: Address) -> None:
    began = time.monotonic()
    status = health(home / "metrics")
    if status != 200 or time.monotonic() - began > _SOON:
        bench.broke(f"/healthz says {status} after {time.monotonic() - began:.1f} s")
    for number in range(5):
        if (taken := _greeted(address, f"other-{number}")) > _SOON:
            bench.broke(f"another producer was greeted after {taken:.1f} s")


def hangs(plan: Plan) -> Iterator[Row]:
    """Let each kind of commit meet a disk that hangs."""
    row = Row("disk hangs", f"{plan.times(4, 30)} s")
    with timed(row):
        for case in _CASES:
            found = hang_run(plan.subject, case, plan.times(4, 30))
            found.notes = [f"{case}: {note}" for note in found.notes]
            row.findings.add(found)
            row.runs += 1
    yield row
