"""Measure `tailsrv` beside a C loop of the same system calls, tailsrv 0.9.3 and nginx.

The rows are the bars of "the broadcaster at the kernel's limit": catching up, live delivery at several fan-outs,
live delivery while others replay cold data, two workers against one, and idleness.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from bench import harness
from bench.report import Bar, Bench, Figure, main

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.harness import Result
    from bench.report import Spread

    Command = Callable[
        [Path], tuple[list[str | Path], int | None]
    ]  # of a file: how to serve it, and the port if it is told one

OURS, FLOOR, OLD, NGINX = "tailsrv", "C floor", "tailsrv 0.9.3", "nginx"
MESSAGE = b"%099d\n" % 0
MB_PER_S, SERVER_CPU = Figure("mb_per_s", "MB/s"), Figure("server_cpu", "server, CPU s")
P50, P99, P999 = Figure("p50_us", "p50, µs"), Figure("p99_us", "p99, µs"), Figure("p999_us", "p99.9, µs")
MISSING = Figure("missing", "missing")
LIVE_FIGURES = [P50, P99, P999, SERVER_CPU, MISSING]
COLOURS = {OURS: "#1f77b4", FLOOR: "#7f7f7f", OLD: "#d95f02", NGINX: "#2ca02c"}
OLD_ROOT = harness.OUT / "tailsrv-0.9.3"
# Two workers, and one core each for whoever publishes and whoever receives.
CORES_FOR_WORKERS = 4

# ---- the systems -----------------------------------------------------------------------------------------------


def ours(file: Path, *options: str) -> tuple[list[str | Path], None]:
    """Return the command of tailsrv as it comes, and that it chooses its port."""
    return [*harness.daemon_command("tailsrv"), file, "--listen", "127.0.0.1:0", *options], None


def floor(file: Path) -> tuple[list[str | Path], None]:
    """Return the command of the C loop."""
    return [harness.tool("broadcast_floor"), file], None


def old(file: Path) -> tuple[list[str | Path], int]:
    """Return the command of the original tailsrv, with a port for it."""
    port = harness.free_port()
    # Without a backtrace its last words are the reason.
    return ["env", "RUST_BACKTRACE=0", OLD_ROOT / "bin" / "tailsrv", "--port", str(port), file], port


def nginx(file: Path) -> tuple[list[str | Path], int]:
    """Return the command of nginx serving the file's folder, with a port for it; the settings are its best for this."""
    port = harness.free_port()
    program = harness.installed("nginx")
    if program is None:
        raise harness.SystemFailedError("nginx is not installed")
    user = "user root;" if os.geteuid() == 0 else ""
    folder = file.parent
    settings = folder / "nginx.conf"
    settings.write_text(
        f"""{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
            open_file_cache max=10;
            server {{ listen 127.0.0.1:{port}; root {folder}; }}
        }}"""
    )
    return [program, "-p", folder, "-c", settings, "-e", "stderr"], port


def old_is_here(bench: Bench) -> bool:
    """Install tailsrv 0.9.3 into bench/out if it is not there and cargo is; a short run takes what it finds."""
    if not (OLD_ROOT / "bin" / "tailsrv").exists() and not bench.short:
        cargo = harness.installed("cargo")
        if cargo is None:
            bench.report.notes.append("tailsrv 0.9.3 is not measured: there is no cargo to install it with")
            return False
        install = [cargo, "install", "--quiet", "tailsrv", "--version", "0.9.3", "--root", str(OLD_ROOT)]
        subprocess.run(install, check=True)
    return (OLD_ROOT / "bin" / "tailsrv").exists()


# ---- what is measured --------------------------------------------------------------------------------------------


def replay_once(command: Command, file: Path, clients: int) -> Result:
    """Let clients catch up with the whole of a hot file."""
    harness.warm(file)
    line, port = command(file)
    http = f"/{file.name}" if command is nginx else False
    with harness.serving(line, port=port) as server:
        size = file.stat().st_size
        return harness.run_tool(
            "replay", port=server.port, bytes=size, clients=clients, http=http, server_pid=server.pid
        )


def live_once(command: Command, folder: Path, **options: int | bool) -> Result:
    """Append messages to a new file and take the latency of each delivery."""
    file = folder / "live.log"
    file.write_bytes(b"")
    try:
        line, port = command(file)
        with harness.serving(line, port=port) as server:
            return harness.run_tool("subscribers", port=server.port, file=file, server_pid=server.pid, **options)
    finally:
        file.unlink()


def replay(bench: Bench, row: str, clients: int) -> None:
    """Measure replays of a hot file."""
    file = bench.folder / "hot.log"
    if not file.exists():
        harness.fill(file, bench.scaled(2_000_000_000, 20_000_000), MESSAGE)
    commands: dict[str, Command] = {OURS: ours, FLOOR: floor}
    if old_is_here(bench):
        commands[OLD] = old
    if harness.installed("nginx"):
        commands[NGINX] = nginx
    systems = {name: partial(replay_once, command, file, clients) for name, command in commands.items()}
    runs = harness.in_turn(systems, bench.rounds, may_fail=frozenset({OLD, NGINX}))
    work = f"replay of a hot {file.stat().st_size / 1e9:.2g} GB file, {clients} client{'s' if clients > 1 else ''}"
    for other, limit in ((FLOOR, 0.95), (NGINX, 0.95), (OLD, 1.0)):
        bench.report.compare(row, work, runs, figure=MB_PER_S, ours=OURS, bar=Bar("≥", limit, other))
    bench.report.show(row, work, runs, [MB_PER_S, SERVER_CPU, Figure("client_cpu", "clients, CPU s")])


def live(bench: Bench, row: str, clients: int, rate: int) -> None:
    """Measure live delivery at one fan-out."""
    clients = bench.scaled(clients, min(clients, 100))
    messages = bench.scaled(rate * 4, max(20, min(rate // 4, 20_000 // clients)))
    commands: dict[str, Command] = {OURS: ours, FLOOR: floor}
    if old_is_here(bench):
        commands[OLD] = old
    systems = {
        name: partial(live_once, command, bench.folder, clients=clients, rate=rate, messages=messages)
        for name, command in commands.items()
    }
    runs = harness.in_turn(systems, bench.rounds, may_fail=frozenset({OLD}))
    work = f"100-byte appends, {rate:,}/s to {clients:,}"
    for figure in (P50, P99, SERVER_CPU):
        for other, limit in ((FLOOR, 1.2), (OLD, 1.0)):
            bench.report.compare(row, work, runs, figure=figure, ours=OURS, bar=Bar("≤", limit, other))
    bench.report.show(row, work, runs, LIVE_FIGURES)


def crowd(bench: Bench) -> None:
    """Measure live delivery to ten thousand clients."""
    clients, rate = bench.scaled(10_000, 1_000), 10
    options = {"clients": clients, "rate": rate, "messages": bench.scaled(40, 5)}
    systems = {
        name: partial(live_once, command, bench.folder, **options) for name, command in ((OURS, ours), (FLOOR, floor))
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = f"{clients:,} connected clients, {rate} appends/s"
    bench.report.limit(
        "crowd", work, [max(r["missing"] for r in runs.rounds[OURS])], heading="missing, most", bar=Bar("≤", 0)
    )
    bench.report.compare("crowd", work, runs, figure=P99, ours=OURS, bar=Bar("<", 1.5, FLOOR))
    bench.report.show("crowd", work, runs, LIVE_FIGURES)


def cold_once(file: Path, command: Command, replayers: int, messages: int) -> Result:
    """Measure ten live clients of a big file that nobody has in memory, with so many others replaying it."""
    harness.evict(file)
    line, port = command(file)
    with harness.serving(line, port=port) as server:
        options = {"clients": 10, "rate": 1000, "messages": messages, "replayers": replayers}
        return harness.run_tool("subscribers", port=server.port, file=file, server_pid=server.pid, **options)


def cold(bench: Bench) -> None:
    """Measure what live clients feel of four that replay a cold file."""
    file = bench.folder / "cold.log"
    harness.fill(file, bench.scaled(8_000_000_000, 40_000_000), MESSAGE)
    messages = bench.scaled(4000, 200)
    alone, beside = "tailsrv, nobody replays", "tailsrv, 4 replay"
    systems = {
        alone: partial(cold_once, file, ours, 0, messages),
        beside: partial(cold_once, file, ours, 4, messages),
        "C floor, 4 replay": partial(cold_once, file, floor, 4, messages),
    }
    runs = harness.in_turn(systems, bench.rounds)
    file.unlink()
    work = "10 live clients, 1,000/s, while 4 clients replay a cold 8 GB file"
    bench.report.compare("cold", work, runs, figure=P99, ours=beside, bar=Bar("≤", 2, alone))
    bench.report.show("cold", work, runs, [*LIVE_FIGURES, Figure("replayed_mb_per_s", "replayed, MB/s")])


def workers(bench: Bench) -> None:
    """Measure two workers against one: the next message is published when all clients have the last."""
    clients = bench.scaled(1000, 100)
    options = {"clients": clients, "rate": 0, "messages": bench.scaled(1000, 20)}
    one, two = "tailsrv --workers 1", "tailsrv --workers 2"
    systems = {
        one: partial(live_once, partial(ours_with_workers, "1"), bench.folder, **options),
        two: partial(live_once, partial(ours_with_workers, "2"), bench.folder, **options),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = f"--workers 2 against 1, {clients:,} clients"
    rate = Figure("deliveries_per_s", "deliveries/s")
    bench.report.compare("workers", work, runs, figure=rate, ours=two, bar=Bar("≥", 1.6, one))
    cores = os.cpu_count() or 1
    if cores < CORES_FOR_WORKERS:
        bench.report.unjudged(f"{cores} cores, and publisher and consumers need theirs")
    bench.report.show("workers", work, runs, [rate, P50, P99, SERVER_CPU, MISSING])


def ours_with_workers(count: str, file: Path) -> tuple[list[str | Path], None]:
    """Return the command of tailsrv with so many workers."""
    return ours(file, "--workers", count)


def idle(bench: Bench) -> None:
    """Measure nothing happening to a thousand clients."""
    clients = bench.scaled(1000, 100)
    options = {"clients": clients, "idle": bench.scaled(5, 1)}
    systems = {
        OURS: partial(live_once, ours, bench.folder, **options),
        FLOOR: partial(live_once, floor, bench.folder, **options),
    }
    runs = harness.in_turn(systems, bench.rounds)
    work = f"idle with {clients:,} connected clients"
    mine = runs.rounds[OURS]
    bench.report.limit("idle", work, [max(r["wake_ups"] for r in mine)], heading="wake-ups, most", bar=Bar("≤", 0))
    bench.report.limit(
        "idle", work, [max(r["server_cpu"] for r in mine)], heading="server, CPU s, most", bar=Bar("≤", 0)
    )


# ---- the picture ---------------------------------------------------------------------------------------------------


def plot(bench: Bench, path: Path) -> None:
    """Draw the systems side by side: latency and processor time at each fan-out, and the speed of a replay."""
    import matplotlib as mpl  # noqa: PLC0415  # half a second that only a whole run has to pay

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after the backend is chosen

    fan_outs = {"live-1": "5,000/s\nto 1", "live-100": "1,000/s\nto 100", "live-1000": "100/s\nto 1,000"}
    replays = {"replay-1": "1 client", "replay-10": "10 clients"}
    panels = [
        ("Live delivery, median latency", "µs (log)", P50, fan_outs, (OURS, FLOOR, OLD)),
        ("Live delivery, 99th percentile", "µs (log)", P99, fan_outs, (OURS, FLOOR, OLD)),
        ("Live delivery, server's processor time", "CPU seconds in 4 s", SERVER_CPU, fan_outs, (OURS, FLOOR, OLD)),
        ("Replay of a hot 2 GB file", "MB/s", MB_PER_S, replays, (OURS, FLOOR, OLD, NGINX)),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for ax, (title, unit, measure, rows, systems) in zip(axes.flat, panels, strict=True):
        for place, system in enumerate(systems):
            spreads = [bench.report.spread(row, measure, system) for row in rows]
            bars(
                ax, system, spreads, at=(place - (len(systems) - 1) / 2) / len(systems) * 0.8, width=0.74 / len(systems)
            )
        ax.set(title=title, ylabel=unit, xlim=(-0.5, len(rows) - 0.5))
        ax.set_xticks(range(len(rows)), list(rows.values()))
        if "log" in unit:
            ax.set_yscale("log")
            ax.set_ylim(bottom=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.3)
        ax.set_axisbelow(True)
    handles, labels = axes.flat[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"tailsrv beside its floor and its neighbours ({bench.rounds} runs in turn: median, least, greatest)"
    )
    figure.savefig(path, dpi=110)


def bars(ax: Axes, system: str, spreads: Sequence[Spread | None], *, at: float, width: float) -> None:
    """Draw one system's bar in every group; where it has no figure, say so."""
    label: str | None = system
    for group, spread in enumerate(spreads):
        if spread is None:
            place = (group + at, 0.03)
            ax.annotate(
                "fails", place, xycoords=("data", "axes fraction"), rotation=90, ha="center", color=COLOURS[system]
            )
            continue
        error = [[spread.median - spread.least], [spread.most - spread.median]]
        ax.bar(group + at, spread.median, width, yerr=error, capsize=3, color=COLOURS[system], label=label)
        label = None


ROWS: dict[str, Callable[[Bench], None]] = {
    "replay-1": lambda bench: replay(bench, "replay-1", 1),
    "replay-10": lambda bench: replay(bench, "replay-10", 10),
    "live-1": lambda bench: live(bench, "live-1", 1, 5000),
    "live-100": lambda bench: live(bench, "live-100", 100, 1000),
    "live-1000": lambda bench: live(bench, "live-1000", 1000, 100),
    "crowd": crowd,
    "cold": cold,
    "workers": workers,
    "idle": idle,
}

if __name__ == "__main__":
    sys.exit(main("broadcast", ROWS, plot))
