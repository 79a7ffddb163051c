"""Measure the message-level clients: Consumer and Producer in Python, and `tailsrv-cat` beside `nc`."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from bench import harness
from bench.broadcast import MESSAGE, ours
from bench.collate import MESSAGES_PER_S, collator, new_file
from bench.harness import Result
from bench.report import Bar, Bench, Figure, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


CAT, NC = "tailsrv-cat", "nc"
MB_PER_S = Figure("mb_per_s", "MB/s")


def program(name: str, port: int, count: int) -> Result:
    """Run one of bench/client_programs.py."""
    command = [sys.executable, "-m", "bench.client_programs", name, f"127.0.0.1:{port}", str(count)]
    finished = subprocess.run(command, capture_output=True, timeout=harness.TOOL_SECONDS, check=False)
    if finished.returncode:
        raise harness.SystemFailedError(f"{name} exits {finished.returncode}: {finished.stderr.decode()[-1000:]}")
    return msgspec.json.decode(finished.stdout, type=Result)


def stream(bench: Bench) -> Path:
    """Return the stream that the rows share."""
    file = bench.folder / "messages.log"
    if not file.exists():
        harness.fill(file, bench.scaled(500_000_000, 5_000_000), MESSAGE)
    return file


def consume_once(bench: Bench, name: str) -> Result:
    """Read the whole of a hot stream, message by message or in batches."""
    file = stream(bench)
    harness.warm(file)
    command, _ = ours(file)
    with harness.serving(command) as server:
        return program(name, server.port, file.stat().st_size // len(MESSAGE))


def consume(bench: Bench, name: str, work: str, least: int) -> None:
    """Judge one way of consuming."""
    runs = harness.in_turn({"Consumer": partial(consume_once, bench, name)}, bench.rounds)
    rates = [r["messages_per_s"] for r in runs.rounds["Consumer"]]
    bench.report.limit(name, work, rates, heading="messages/s", bar=Bar("≥", least))


def produce_once(bench: Bench) -> Result:
    """Send messages to a collator that does not sync, and have them all acknowledged."""
    for file in new_file(bench.folder):
        with harness.serving(collator(file, sync=False, acked=True)) as server:
            result = program("produce", server.port, bench.scaled(1_000_000, 10_000))
    return result


def produce(bench: Bench) -> None:
    """Judge the producer."""
    runs = harness.in_turn({"Producer": partial(produce_once, bench)}, bench.rounds)
    rates = [r[MESSAGES_PER_S.name] for r in runs.rounds["Producer"]]
    bench.report.limit("producer", "Producer, acknowledged, never", rates, heading="messages/s", bar=Bar("≥", 300_000))


def copy_once(file: Path, system: str) -> Result:
    """Copy a hot stream to where nothing reads it; the time runs from the start of the process to its end."""
    harness.warm(file)
    command, _ = ours(file)
    with harness.serving(command) as server:
        port = str(server.port)
        cat = [*harness.daemon_command(CAT), f"127.0.0.1:{port}", "--from", "start", "--until", "now"]
        reader = cat if system == CAT else ["nc", "-N", "127.0.0.1", port]
        begin = time.monotonic()
        done = subprocess.run(
            reader,
            input=b"0 now\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=harness.TOOL_SECONDS,
            check=False,
        )
        if done.returncode:
            raise harness.SystemFailedError(f"{system} exits {done.returncode}: {done.stderr.decode()[-1000:]}")
        return {"mb_per_s": file.stat().st_size / 1e6 / (time.monotonic() - begin)}


def cat(bench: Bench) -> None:
    """Judge the command beside netcat."""
    file = bench.folder / "cat.log"
    harness.fill(file, bench.scaled(4_000_000_000, 5_000_000), MESSAGE)
    runs = harness.in_turn({name: partial(copy_once, file, name) for name in (CAT, NC)}, bench.rounds)
    bench.report.compare("cat", "tailsrv-cat, raw", runs, figure=MB_PER_S, ours=CAT, bar=Bar("≥", 0.8, NC))
    bench.report.show("cat", "tailsrv-cat, raw", runs, [MB_PER_S])


ROWS: dict[str, Callable[[Bench], None]] = {
    "batches": partial(consume, name="batches", work="Consumer.batches()", least=2_000_000),
    "each": partial(consume, name="each", work="for message in Consumer", least=500_000),
    "producer": produce,
    "cat": cat,
}

if __name__ == "__main__":
    sys.exit(main("clients", ROWS))
