"""Measure the three loops: `python -m bench.loops`."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from bench import harness
from bench.broadcast import LIVE_FIGURES, P99, SERVER_CPU
from bench.report import Bar, Bench, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.harness import Result

FLOOR, EPOLL, ASYNCIO, UVLOOP = "C floor", "plain epoll", "asyncio", "uvloop"
MODULES = {EPOLL: "epoll_loop", ASYNCIO: "asyncio_loop", UVLOOP: "uvloop_loop"}


def once(system: str, folder: Path, clients: int, rate: int, messages: int) -> Result:
    """Append messages to a new file and take the latency of each delivery."""
    file = folder / "live.log"
    file.write_bytes(b"")
    command: list[str | Path] = [harness.tool("broadcast_floor"), file]
    if system in MODULES:
        command = [sys.executable, "-m", f"bench.loops.{MODULES[system]}", file]
    options = {"clients": clients, "rate": rate, "messages": messages}
    with harness.serving(command) as server:
        return harness.run_tool("subscribers", port=server.port, file=file, server_pid=server.pid, **options)


def fan_out(bench: Bench, row: str, clients: int, rate: int) -> None:
    """Measure live delivery at one fan-out."""
    messages = bench.scaled(rate * 4, max(20, min(rate // 4, 10_000 // clients)))
    systems = {name: partial(once, name, bench.folder, clients, rate, messages) for name in (FLOOR, *MODULES)}
    runs = harness.in_turn(systems, bench.rounds)
    work = f"100-byte appends, {rate:,}/s to {clients:,}"
    for figure in (P99, SERVER_CPU):
        for other in (ASYNCIO, UVLOOP):
            bar = Bar("≤", 1.0, other)
            bench.report.compare(row, work, runs, figure=figure, ours=EPOLL, bar=bar)
    bench.report.show(row, work, runs, LIVE_FIGURES)


ROWS: dict[str, Callable[[Bench], None]] = {
    "live-1": lambda bench: fan_out(bench, "live-1", 1, 5000),
    "live-100": lambda bench: fan_out(bench, "live-100", 100, 1000),
    "live-1000": lambda bench: fan_out(bench, "live-1000", 1000, 100),
}

if __name__ == "__main__":
    sys.exit(main("loops", ROWS))
