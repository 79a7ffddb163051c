"""Measure `tailsrv-collate` beside a C loop of the same system calls, and the way from producer to consumer.

The rows are the speed bars of "the collator keeps its promises". Streams are written under --dir: what a synced
acknowledgement costs is a property of that file system, and is measured there by a bare write and fdatasync.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from bench import harness
from bench.broadcast import MISSING, P50, P99, P999, SERVER_CPU
from bench.broadcast import ours as broadcaster
from bench.report import Bar, Bench, Figure, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from bench.harness import Result

OURS, FLOOR, SYNC = "tailsrv-collate", "C floor", "write + fdatasync"
MB_PER_S, MESSAGES_PER_S = Figure("mb_per_s", "MB/s"), Figure("messages_per_s", "messages/s")
CLIENT_CPU = Figure("client_cpu", "producers, CPU s")
PRODUCERS = (1, 10, 100)
PREFIXES = ("u16be", "u32be", "u32le", "varint")
names = itertools.count()


HOLDERS, HELD_BYTES, NEW_PER_SECOND = 12_000, 2800, 730
ELSEWHERE = 3000
"""Connections of a process to itself: both ends take a descriptor."""
ROOM = 32 << 20
"""--buffer-bytes: a little less than the holders send, so that each new one is one too many."""


def collator(file: Path, *, sync: bool, acked: bool, framing: str = "newline") -> list[str | Path]:
    """Return the command of tailsrv-collate with the one lane that is measured."""
    lane = "--ack-listen" if acked else "--listen"
    settings = ["--framing", framing, "--sync", "always" if sync else "never", lane, "127.0.0.1:0"]
    return [*harness.daemon_command("tailsrv-collate"), file, *settings]


def floor(file: Path, *, sync: bool, acked: bool, framing: str = "newline") -> list[str | Path]:
    """Return the command of the C loop, which knows newlines alone."""
    if framing != "newline":
        raise ValueError(f"the C floor does not know {framing}")
    return [harness.tool("collate_floor"), file, *(["--sync"] if sync else []), *(["--acks"] if acked else [])]


def new_file(folder: Path) -> Iterator[Path]:
    """Yield a name for a stream, and remove it and everything beside it afterwards: nothing is left to write back."""
    file = folder / f"collated-{next(names)}.log"
    try:
        yield file
    finally:
        for beside in folder.glob(f"{file.name}*"):
            beside.unlink()


def produce(
    command: Callable[..., list[str | Path]],
    folder: Path,
    load: Mapping[str, int],
    *,
    sync: bool = False,
    acked: bool = False,
    framing: str = "newline",
) -> Result:
    """Start a collator on a new file and let producers write to it."""
    for file in new_file(folder):
        with harness.serving(command(file, sync=sync, acked=acked, framing=framing)) as server:
            result = harness.run_tool(
                "producers",
                port=server.port,
                file=file,
                server_pid=server.pid,
                acked=acked,
                framing=framing,
                **load,
            )
    return result


def raw(bench: Bench) -> None:
    """Measure the raw lane against the floor."""
    for connections in PRODUCERS:
        load = {"connections": connections, "milliseconds": bench.scaled(1500, 200)}
        systems = {
            OURS: partial(produce, collator, bench.folder, load),
            FLOOR: partial(produce, floor, bench.folder, load),
        }
        runs = harness.in_turn(systems, bench.rounds)
        work = f"raw lane, never, newline, {connections} producer{'s' if connections > 1 else ''}"
        bench.report.compare("raw", work, runs, figure=MB_PER_S, ours=OURS, bar=Bar("≥", 0.7, FLOOR))
        bench.report.show("raw", work, runs, [MB_PER_S, MESSAGES_PER_S, SERVER_CPU, CLIENT_CPU])


def prefix(bench: Bench, framing: str) -> None:
    """Measure a framing whose boundaries are found message by message."""
    for connections in PRODUCERS:
        load = {"connections": connections, "milliseconds": bench.scaled(1500, 200)}
        runs = harness.in_turn({OURS: partial(produce, collator, bench.folder, load, framing=framing)}, bench.rounds)
        work = f"raw lane, never, {framing}, {connections} producer{'s' if connections > 1 else ''}"
        rates = [r["messages_per_s"] for r in runs.rounds[OURS]]
        bench.report.limit(framing, work, rates, heading="messages/s", bar=Bar("≥", 3_000_000))
        bench.report.show(framing, work, runs, [MB_PER_S, MESSAGES_PER_S, SERVER_CPU, CLIENT_CPU])


def bare_sync(bench: Bench) -> Result:
    """Append and sync without anybody in between."""
    for file in new_file(bench.folder):
        result = harness.run_tool("syncfloor", file=file, count=bench.scaled(5000, 100))
    return result


def acked_latency(bench: Bench) -> None:
    """Measure one synced acknowledgement at a time."""
    load = {"connections": 1, "window": 1, "milliseconds": bench.scaled(2000, 200)}
    systems = {
        OURS: partial(produce, collator, bench.folder, load, sync=True, acked=True),
        SYNC: partial(bare_sync, bench),
        FLOOR: partial(produce, floor, bench.folder, load, sync=True, acked=True),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = "acknowledged and synced, 1 producer, one message in flight"
    bench.report.compare("acked-latency", work, runs, figure=P50, ours=OURS, bar=Bar("≤", 1.8, SYNC))
    bench.report.show("acked-latency", work, runs, [P50, P99, P999, SERVER_CPU])


def acked_throughput(bench: Bench) -> None:
    """Measure group commit."""
    load = {"connections": 100, "window": 1000, "milliseconds": bench.scaled(2000, 300)}
    systems = {
        OURS: partial(produce, collator, bench.folder, load, sync=True, acked=True),
        FLOOR: partial(produce, floor, bench.folder, load, sync=True, acked=True),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = "acknowledged and synced, 100 producers pipelining 1,000 each"
    bench.report.compare("acked-throughput", work, runs, figure=MESSAGES_PER_S, ours=OURS, bar=Bar("≥", 0.6, FLOOR))
    bench.report.show("acked-throughput", work, runs, [MESSAGES_PER_S, MB_PER_S, SERVER_CPU, CLIENT_CPU])


def silent(bench: Bench) -> None:
    """Measure what connections that say nothing cost those that do."""
    alone, beside = "20 busy", "20 busy, 1,980 idle"
    load = {"connections": 20, "window": 1, "milliseconds": bench.scaled(2000, 200)}
    crowd = {**load, "idle": bench.scaled(1980, 200)}
    systems = {
        alone: partial(produce, collator, bench.folder, load, acked=True),
        beside: partial(produce, collator, bench.folder, crowd, acked=True),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = "2,000 connections, 20 of them busy"
    bench.report.compare("silent", work, runs, figure=P99, ours=beside, bar=Bar("≤", 1.3, alone))
    bench.report.show("silent", work, runs, [P50, P99, P999, MESSAGES_PER_S, SERVER_CPU])


def beside_holders(bench: Bench, holders: int, size: int = HELD_BYTES, *, elsewhere: bool = False) -> Result:
    """Measure honest producers of the acknowledged port beside connections that hold incomplete messages of `size`.

    `elsewhere`: connections that do not lead to the collator.
    """
    load = {"connections": 20, "window": 1, "milliseconds": bench.scaled(3000, 200)}
    for file in new_file(bench.folder):
        both = [
            "--sync",
            "never",
            "--buffer-bytes",
            str(ROOM),
            "--ack-listen",
            "127.0.0.1:0",
            "--listen",
            "127.0.0.1:0",
        ]
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(harness.serving([*harness.daemon_command("tailsrv-collate"), file, *both]))
            raw_port, acked_port = server.ports  # in the order of the roles
            if holders:
                stack.enter_context(holding(0 if elsewhere else raw_port, holders, size))
            result = harness.run_tool(
                "producers", port=acked_port, file=file, server_pid=server.pid, acked=True, framing="newline", **load
            )
    return result


@contextlib.contextmanager
def holding(port: int, count: int, size: int) -> Iterator[None]:
    """Let another process hold incomplete messages until the block ends."""
    words = [sys.executable, "-m", "bench.holders", str(port), str(count), str(size), str(NEW_PER_SECOND)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101 - the same
        if process.stdout.readline() != b"ready\n":
            raise harness.SystemFailedError(f"the holders' process exits {process.wait()}")
        try:
            yield
        finally:
            process.stdin.close()


def held(bench: Bench) -> None:
    """Measure what connections that fill the buffer with incomplete messages cost honest producers."""
    count = bench.scaled(HOLDERS, 500)
    alone, beside = "20 honest", f"20 honest, {count} holders, {NEW_PER_SECOND} new/s"
    elsewhere = f"20 honest, {NEW_PER_SECOND} new/s elsewhere"
    systems = {
        alone: partial(beside_holders, bench, 0),
        # On a machine with few processors the holders' own work delays everybody; no collator can help that.
        elsewhere: partial(beside_holders, bench, bench.scaled(ELSEWHERE, 100), 1, elsewhere=True),
        # As many connections come and go, and nobody has to be closed for lack of room: what that alone costs.
        f"20 honest, {count} of a byte, {NEW_PER_SECOND} new/s": partial(beside_holders, bench, count, 1),
        beside: partial(beside_holders, bench, count),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = f"20 honest producers, the buffer full of incomplete messages of {count} others"
    bench.report.compare("held", work, runs, figure=P99, ours=beside, bar=Bar("≤", 1.3, alone))
    bench.report.compare("held", work, runs, figure=P99, ours=beside, bar=Bar("≤", 1.3, elsewhere))
    bench.report.show("held", work, runs, [P50, P99, P999, MESSAGES_PER_S, SERVER_CPU])


def through_once(first: Callable[..., list[str | Path]], bench: Bench) -> Result:
    """Send messages to a collator, and receive them from the broadcaster of the same file."""
    for file in new_file(bench.folder):
        with harness.serving(first(file, sync=False, acked=False)) as collating:
            broadcast, _ = broadcaster(file)
            with harness.serving(broadcast) as broadcasting:
                result = harness.run_tool(
                    "subscribers",
                    port=broadcasting.port,
                    file=file,
                    produce_port=collating.port,
                    server_pid=broadcasting.pid,
                    server_pid_2=collating.pid,
                    rate=1000,
                    messages=bench.scaled(4000, 200),
                )
    return result


def end_to_end(bench: Bench) -> None:
    """Measure the way of a message from its producer's write to its consumer's recv."""
    systems = {
        "tailsrv-collate, tailsrv": partial(through_once, collator, bench),
        "C floor, tailsrv": partial(through_once, floor, bench),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = "producer to consumer through tailsrv, never, 1,000/s"
    mine = runs.rounds["tailsrv-collate, tailsrv"]
    p50, p99 = ([r[figure.name] for r in mine] for figure in (P50, P99))
    bench.report.limit("end-to-end", work, p50, heading=P50.heading, bar=Bar("≤", 250, unit="µs"))
    bench.report.limit("end-to-end", work, p99, heading=P99.heading, bar=Bar("≤", 1500, unit="µs"))
    bench.report.show("end-to-end", work, runs, [P50, P99, P999, SERVER_CPU, MISSING])


ROWS: dict[str, Callable[[Bench], None]] = {
    "raw": raw,
    **{framing: partial(prefix, framing=framing) for framing in PREFIXES},
    "acked-latency": acked_latency,
    "acked-throughput": acked_throughput,
    "silent": silent,
    "held": held,
    "end-to-end": end_to_end,
}

if __name__ == "__main__":
    sys.exit(main("collate", ROWS))
