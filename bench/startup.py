"""What a daemon costs before it has done anything: time until it listens, resident memory then.

python -m bench.startup [--short]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench import harness
from bench.report import Spread, number

RUNS = 11
COMMANDS = ("tailsrv", "tailsrv-collate", "tailsrv-index")
SECONDS_BAR = 0.3
MIB_BAR = 32.0


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def main() -> None:
    """Print a row a daemon: medians, in turn."""
    runs = 1 if "--short" in sys.argv else RUNS
    seconds: dict[str, list[float]] = {command: [] for command in COMMANDS}
    memory: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log"
        file.write_text("line\n" * 1000)
        for _ in range(runs):
            for command in COMMANDS:
                with harness.serving([*harness.daemon_command(command), file, "--listen", "127.0.0.1:0"]) as server:
                    seconds[command].append(server.ready_seconds)
                    memory[command].append(_resident_mib(server.pid))
    print("| daemon | seconds to listening (bar ≤ 0.3) | MiB resident (bar ≤ 32) | |")
    print("| --- | --- | --- | --- |")
    for command in COMMANDS:
        start, resident = Spread.of(seconds[command]), Spread.of(memory[command])
        met = start.median <= SECONDS_BAR and resident.median <= MIB_BAR
        print(f"| {command} | {start} | {number(resident.median)} | {'met' if met else 'missed'} |")


if __name__ == "__main__":
    main()
