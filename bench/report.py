"""Medians, ratios and verdicts, and the tables that show them.

Law: a ratio is taken within one round, between runs that stood next to each other in time; the median of the
rounds' ratios meets the bar or misses it, and the table shows the least and the greatest beside it. It does not
know how anything was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from bench import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Sign = Literal["≤", "≥", "<"]
DOCS = harness.BENCH.parent / "docs" / "benchmarks"


class Spread(msgspec.Struct, frozen=True):
    """The median of the rounds, and how far they went."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize at least one value."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)}…{number(self.most)})"


def number(value: float) -> str:
    """Write a figure with three significant digits, thousands separated."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3g}"


class Verdict(msgspec.Struct, frozen=True):
    """One bar, and what was measured beside it."""

    row: str
    work: str
    measure: str
    bar: str
    measured: Spread | None = None
    reference: Spread | None = None
    ratio: Spread | None = None
    verdict: str = "not judged"

    @property
    def cells(self) -> list[str]:
        """The line of the table."""
        return [
            self.work,
            self.measure,
            self.bar,
            *("" if spread is None else str(spread) for spread in (self.measured, self.reference, self.ratio)),
            self.verdict,
        ]


class Figure(NamedTuple):
    """A figure's name in the tools' results, and its heading in a table."""

    name: str
    heading: str


class Bar(msgspec.Struct, frozen=True):
    """What a figure has to be: a number, or a multiple of another system's."""

    sign: Sign
    limit: float
    other: str = ""
    unit: str = ""

    def __str__(self) -> str:
        if self.other:
            return f"{self.sign} {self.limit:g} x {self.other}"
        return f"{self.sign} {number(self.limit)} {self.unit}".rstrip()

    def verdict(self, value: float) -> str:
        """Return what the table says of a figure."""
        met = {"≥": value >= self.limit, "≤": value <= self.limit, "<": value < self.limit}[self.sign]
        return "pass" if met else "**miss**"


@dataclass
class Report:
    """What a bench found: verdicts for its bars, and every system's figures."""

    verdicts: list[Verdict] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: dict[str, harness.Runs] = field(default_factory=dict)

    def spread(self, row: str, figure: Figure, system: str) -> Spread | None:
        """Return one system's figure in a row that was shown; None if it has none."""
        results = self.runs[row].rounds.get(system)
        return Spread.of(r[figure.name] for r in results) if results else None

    def show(self, row: str, work: str, runs: harness.Runs, figures: Sequence[Figure]) -> None:
        """Add a table of every system's figures."""
        self.runs[row] = runs
        rows = [[system, *(cell(results, figure) for figure in figures)] for system, results in runs.rounds.items()]
        self.details += ["", f"### {work}", "", *table(["system", *(f.heading for f in figures)], rows)]
        for system, failure in runs.failures.items():
            self.notes.append(f"{system} could not do {work}: {shorten(failure)}")

    def compare(self, row: str, work: str, runs: harness.Runs, *, figure: Figure, ours: str, bar: Bar) -> None:
        """Judge a figure of the system `ours` as a multiple of what the bar's system had in the same round."""
        mine, theirs = ([r[figure.name] for r in runs.rounds.get(s, [])] for s in (ours, bar.other))
        if not theirs:
            why = "cannot do it" if bar.other in runs.failures else "is not installed"
            verdict = f"not judged: {bar.other} {why}"
            self.verdicts.append(Verdict(row, work, figure.heading, str(bar), Spread.of(mine), verdict=verdict))
            return
        ratio = Spread.of(a / b if b else float("inf") for a, b in zip(mine, theirs, strict=True))
        spreads = (Spread.of(mine), Spread.of(theirs), ratio)
        self.verdicts.append(Verdict(row, work, figure.heading, str(bar), *spreads, bar.verdict(ratio.median)))

    def limit(self, row: str, work: str, values: Sequence[float], *, heading: str, bar: Bar) -> None:
        """Judge a figure by itself."""
        spread = Spread.of(values)
        self.verdicts.append(Verdict(row, work, heading, str(bar), spread, verdict=bar.verdict(spread.median)))

    def unjudged(self, why: str) -> None:
        """Withdraw the last verdict, not its figures: on this machine it would say nothing."""
        last = self.verdicts.pop()
        self.verdicts.append(msgspec.structs.replace(last, verdict=f"not judged: {why}"))

    def bars(self) -> list[str]:
        """Return the table of the bars."""
        headings = ["work", "measure", "bar", "measured", "reference", "ratio", "verdict"]
        return table(headings, [verdict.cells for verdict in self.verdicts])


def cell(results: Sequence[harness.Result], figure: Figure) -> str:
    """Return a system's figure as a table shows it: blank where there is none."""
    return str(Spread.of(r[figure.name] for r in results)) if results and figure.name in results[0] else ""


def shorten(text: str, most: int = 300) -> str:
    """Return one line of a failure's text, without the paths of this machine."""
    line = re.sub(r"(?<![\w.])/[\w.+/-]+/", "…/", " ".join(text.split()))
    return line if len(line) <= most else line[:most] + "…"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table that is also readable as it is."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(headings), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]


# ---- running a bench -------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One run of a bench: how much to do, where to put files, and what came out."""

    short: bool
    rounds: int
    folder: Path
    report: Report = field(default_factory=Report)

    def scaled(self, full: int, short: int) -> int:
        """Choose the amount of work."""
        return short if self.short else full


def machine(folder: Path) -> str:
    """Describe what it ran on: enough to judge the figures, nothing that names a machine."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel = ".".join(platform.release().split("-")[0].split(".")[:2])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    kind = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", "-T", folder], capture_output=True, text=True, check=True
    ).stdout.strip()
    python = platform.python_version()
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, Linux {kernel}, {kind}, Python {python}"


def main(
    name: str,
    rows: Mapping[str, Callable[[Bench], None]],
    plot: Callable[[Bench, Path], None] | None = None,
) -> int:
    """Run the rows that are asked for, print their tables, write NAME.md and NAME.json; return the exit status.

    A missed bar is a finding and exits 0; a row that could not be measured exits 1.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    parser.add_argument("--short", action="store_true", help="one small round of everything: does it still run?")
    parser.add_argument("--rows", nargs="+", choices=rows, default=list(rows), metavar="ROW", help=", ".join(rows))
    parser.add_argument("--rounds", type=int, help="runs of each system, in turn (default 5; --short 1)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where streams are written")
    parser.add_argument("--out", type=Path, help="where results go (default docs/benchmarks for a full run)")
    given = parser.parse_args()
    whole = given.rows == list(rows)
    out: Path = given.out or (DOCS if whole and not given.short else harness.OUT / "results")
    failed = []
    with (
        contextlib.nullcontext() if given.short else harness.alone(),
        tempfile.TemporaryDirectory(dir=given.dir, prefix="bench-") as folder,
    ):
        bench = Bench(given.short, given.rounds or (1 if given.short else 5), Path(folder))
        for row in given.rows:
            print(f"{name}: {row}", file=sys.stderr)
            try:
                rows[row](bench)
            except (harness.SystemFailedError, OSError, subprocess.SubprocessError) as error:
                print(f"{name}: {row} failed: {error}", file=sys.stderr)
                failed.append(row)
                verdict = f"failed: {shorten(str(error))}"
                bench.report.verdicts.append(Verdict(row, row, "", "", verdict=verdict))
        where = machine(Path(folder))
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    if plot and whole and not failed:
        plot(bench, out / f"{name}.png")
        pictures = ["", f"![{name}]({name}.png)"]
    target = "bench-short" if given.short else f"bench-{name}"
    rounds = f"medians of {bench.rounds} runs, the systems in turn; in brackets the least and the greatest"
    what = "figures without meaning" if given.short else rounds
    text = [
        f"# Benchmark: {name}",
        "",
        f"`make {target}`, {dt.datetime.now(tz=dt.UTC):%Y-%m-%d}: {what}.",
        f"Machine: {where}. How to read it: [bench/README.md](../../bench/README.md).",
        "",
        *bench.report.bars(),
        *pictures,
        *(["", "## Notes", "", *(f"- {note}" for note in bench.report.notes)] if bench.report.notes else []),
        "",
        "## All figures",
        *bench.report.details,
    ]
    (out / f"{name}.md").write_text("\n".join(text) + "\n")
    (out / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(bench.report.verdicts)))
    print("\n".join(text))
    return 1 if failed else 0
