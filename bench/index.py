"""Measure `tailsrv-index`: building beside `wc -l`, look-ups, the size of the index, memory with a huge stream."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from bench import harness
from bench.report import Bar, Bench, Figure, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.harness import Result, Server

OURS, WC = "tailsrv-index", "wc -l"
MESSAGE_BYTES = 100
LINE = b"%099d\n" % 0
PREFIXED = (MESSAGE_BYTES - 4).to_bytes(4, "big") + bytes(MESSAGE_BYTES - 4)
GB_PER_S, MESSAGES_PER_S = Figure("gb_per_s", "GB/s"), Figure("messages_per_s", "messages/s")
P50, P99, SERVER_CPU = Figure("p50_us", "p50, µs"), Figure("p99_us", "p99, µs"), Figure("server_cpu", "server, CPU s")
LOOK_SECONDS = 0.002
BUILD_SECONDS = 600.0
SPARSE_MESSAGE = 1 << 20


def command(file: Path, index: Path, framing: str = "newline") -> list[str | Path]:
    """Return the command of tailsrv-index with its index in a place of our choice."""
    settings: list[str | Path] = ["--framing", framing, "--listen", "127.0.0.1:0", "--index", index]
    return [*harness.daemon_command("tailsrv-index"), file, *settings]


def count(connection: socket.socket) -> int | None:
    """Ask how many messages there are; None while it does not know yet."""
    connection.sendall(b'{"count": true}\n')
    reply = b""
    while not reply.endswith(b"\n"):
        piece = connection.recv(4096)
        if not piece:
            raise harness.SystemFailedError("the indexer closed the connection")
        reply += piece
    answer = msgspec.json.decode(reply)
    if "not indexed yet" in answer.get("error", ""):
        return None
    if "count" not in answer:
        raise harness.SystemFailedError(f"no count: {answer}")
    return int(answer["count"])


def await_count(server: Server, wanted: int, look: Callable[[], None] = lambda: None) -> None:
    """Wait until it knows all messages; nothing tells when, so it is asked again and again."""
    deadline = time.monotonic() + BUILD_SECONDS
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        while (known := count(connection)) != wanted:
            look()
            if time.monotonic() > deadline:
                raise harness.SystemFailedError(f"{known} of {wanted} messages after {BUILD_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)


def build_once(file: Path, index: Path, framing: str) -> Result:
    """Build an index from nothing. The time runs from the start of the process: no work hides before readiness."""
    index.unlink(missing_ok=True)
    harness.warm(file)
    size = file.stat().st_size
    begin = time.monotonic()
    with harness.serving(command(file, index, framing)) as server:
        await_count(server, size // MESSAGE_BYTES)
        seconds = time.monotonic() - begin
        cpu = harness.cpu_seconds(server.pid)
    return {
        "gb_per_s": size / 1e9 / seconds,
        "messages_per_s": size / MESSAGE_BYTES / seconds,
        "server_cpu": cpu,
        "share": index.stat().st_size / size * 100,
    }


def wc_once(file: Path) -> Result:
    """Count the lines, and nothing else."""
    harness.warm(file)
    begin = time.monotonic()
    subprocess.run(["wc", "-l", file], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    size = file.stat().st_size
    return {"gb_per_s": size / 1e9 / seconds, "messages_per_s": size / MESSAGE_BYTES / seconds}


def lines(bench: Bench) -> Path:
    """Return the stream of lines that several rows share."""
    file = bench.folder / "lines.log"
    if not file.exists():
        harness.fill(file, bench.scaled(10_000_000_000, 20_000_000), LINE)
    return file


def build(bench: Bench) -> None:
    """Measure building from lines, and how big the index gets."""
    file = lines(bench)
    index = bench.folder / "lines.index"
    systems = {OURS: partial(build_once, file, index, "newline"), WC: partial(wc_once, file)}
    runs = harness.in_turn(systems, bench.rounds)
    work = f"build, newline, {file.stat().st_size / 1e9:.2g} GB"
    mine = runs.rounds[OURS]
    bench.report.limit("build", work, [r["gb_per_s"] for r in mine], heading="GB/s", bar=Bar("≥", 1.5))
    bench.report.compare("build", work, runs, figure=GB_PER_S, ours=OURS, bar=Bar("≥", 0.3, WC))
    shares = [r["share"] for r in mine]
    bench.report.limit("build", "index size, default interval", shares, heading="% of stream", bar=Bar("≤", 0.6))
    bench.report.show("build", work, runs, [GB_PER_S, MESSAGES_PER_S, SERVER_CPU])


def build_prefixed(bench: Bench) -> None:
    """Measure building from messages whose boundaries are found one by one."""
    file = bench.folder / "prefixed.log"
    harness.fill(file, bench.scaled(2_000_000_000, 20_000_000), PREFIXED)
    systems = {OURS: partial(build_once, file, bench.folder / "prefixed.index", "u32be")}
    runs = harness.in_turn(systems, bench.rounds)
    file.unlink()
    work = "build, u32be, 100-byte messages"
    rates = [r["messages_per_s"] for r in runs.rounds[OURS]]
    bench.report.limit("build-u32be", work, rates, heading="messages/s", bar=Bar("≥", 4_000_000))
    bench.report.show("build-u32be", work, runs, [GB_PER_S, MESSAGES_PER_S, SERVER_CPU])


@contextlib.contextmanager
def indexed(bench: Bench) -> Iterator[tuple[Server, int]]:
    """Serve an index of the lines that is complete; yield how many they are, too."""
    file = lines(bench)
    messages = file.stat().st_size // MESSAGE_BYTES
    with harness.serving(command(file, bench.folder / "lookups.index")) as server:
        await_count(server, messages)
        harness.warm(file)
        yield server, messages


def lookups(bench: Bench) -> None:
    """Measure look-ups over TCP, one at a time and pipelined. Answers are checked."""
    with indexed(bench) as (server, messages):
        ask = partial(
            harness.run_tool, "lookups", port=server.port, server_pid=server.pid, messages=messages, size=MESSAGE_BYTES
        )
        one = partial(ask, depth=1, lookups=bench.scaled(20_000, 500))
        many = partial(ask, depth=1000, lookups=bench.scaled(100_000, 3000))
        runs = harness.in_turn({"one at a time": one, "pipelined": many}, bench.rounds)
    single, piped = runs.rounds["one at a time"], runs.rounds["pipelined"]
    work = "look-up over TCP, one at a time"
    bench.report.limit("lookups", work, [r["p50_us"] for r in single], heading="p50, µs", bar=Bar("≤", 120, unit="µs"))
    bench.report.limit("lookups", work, [r["p99_us"] for r in single], heading="p99, µs", bar=Bar("≤", 500, unit="µs"))
    rates = [r["lookups_per_s"] for r in piped]
    bench.report.limit("lookups", "look-ups pipelined, one client", rates, heading="per second", bar=Bar("≥", 40_000))
    bench.report.show("lookups", "look-ups", runs, [P50, P99, Figure("lookups_per_s", "per second"), SERVER_CPU])


def memory(bench: Bench) -> None:
    """Measure memory and start-up with a huge stream: sparse, a newline at the end of every MiB.

    The page cache is nobody's memory: what counts is what belongs to the process alone.
    """
    file, index, empty = bench.folder / "huge.log", bench.folder / "huge.index", bench.folder / "empty.log"
    messages = bench.scaled(100_000, 200)
    with file.open("wb", buffering=0) as stream:
        for number in range(messages):
            stream.seek((number + 1) * SPARSE_MESSAGE - 1)
            stream.write(b"\n")
    empty.write_bytes(b"")
    with harness.serving(command(empty, bench.folder / "empty.index")) as server:
        await_count(server, 0)
        idle = harness.anonymous_bytes(server.pid)
    building = []
    with harness.serving(command(file, index)) as server:
        await_count(server, messages, lambda: building.append(harness.anonymous_bytes(server.pid)))
        building.append(harness.anonymous_bytes(server.pid))
    ready, serving = [], []
    for _ in range(bench.rounds):
        with harness.serving(command(file, index)) as server:
            ready.append(server.ready_seconds)
            harness.run_tool("lookups", port=server.port, messages=messages, lookups=1000, size=SPARSE_MESSAGE)
            serving.append(harness.anonymous_bytes(server.pid))
    file.unlink()
    work = f"{messages * SPARSE_MESSAGE / 1e9:,.1f} GB stream"
    bar = Bar("≤", 40, unit="MiB")
    above = [(value - idle) / 2**20 for value in (max(building), *serving)]
    bench.report.limit("memory", f"{work}, building", above[:1], heading="MiB above idle, most", bar=bar)
    bench.report.limit("memory", f"{work}, answering", above[1:], heading="MiB above idle", bar=bar)
    bench.report.limit("memory", f"{work}, indexed", ready, heading="ready, s", bar=Bar("≤", 0.5, unit="s"))


ROWS: dict[str, Callable[[Bench], None]] = {
    "build": build,
    "build-u32be": build_prefixed,
    "lookups": lookups,
    "memory": memory,
}

if __name__ == "__main__":
    sys.exit(main("index", ROWS))
