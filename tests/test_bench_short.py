"""The benches still measure: each row of each bench gives a figure. What the figures are is no test's business."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from bench import broadcast, clients, collate, harness, index
from bench.harness import Runs
from bench.loops import __main__ as loops
from bench.report import Bar, Figure, Report, Spread, Verdict

if TYPE_CHECKING:
    from pathlib import Path

BENCHES = {
    "broadcast": broadcast.ROWS,
    "collate": collate.ROWS,
    "index": index.ROWS,
    "clients": clients.ROWS,
    "loops": loops.ROWS,
}
SPEED = Figure("speed", "speed")
NEEDS = {"broadcast": ("cc",), "collate": ("cc",), "index": ("cc",), "clients": ("nc",), "loops": ("cc",)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs(*NEEDS[name])) for name in BENCHES])
def test_every_row_of_a_short_bench_measures_something(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"bench.{name}", "--short", "--out", str(tmp_path), "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    verdicts = msgspec.json.decode((tmp_path / f"{name}.json").read_bytes(), type=list[Verdict])
    assert {verdict.row for verdict in verdicts} == set(BENCHES[name])
    assert all(verdict.measured is not None for verdict in verdicts), verdicts
    assert all(verdict.measure in done.stdout for verdict in verdicts)


def test_a_ratio_is_taken_within_a_round_and_the_median_is_judged() -> None:
    runs = Runs(
        {
            "ours": [{"speed": 1.0}, {"speed": 20.0}, {"speed": 3.0}],
            "floor": [{"speed": 2.0}, {"speed": 10.0}, {"speed": 4.0}],
        }
    )
    report = Report()
    report.compare("row", "work", runs, figure=SPEED, ours="ours", bar=Bar("≥", 0.75, "floor"))
    report.compare("row", "work", runs, figure=SPEED, ours="ours", bar=Bar("≥", 0.76, "floor"))
    assert report.verdicts[0].ratio == Spread(0.75, 0.5, 2.0)
    assert [verdict.verdict for verdict in report.verdicts] == ["pass", "**miss**"]


def test_a_foreign_system_that_fails_is_reported_and_not_compared() -> None:
    def fails() -> harness.Result:
        raise harness.SystemFailedError("it panicked")

    runs = harness.in_turn({"ours": lambda: {"speed": 1.0}, "theirs": fails}, 2, may_fail=frozenset({"theirs"}))
    report = Report()
    report.compare("row", "work", runs, figure=SPEED, ours="ours", bar=Bar("≥", 1.0, "theirs"))
    report.show("row", "work", runs, [SPEED])
    assert report.verdicts[0].verdict == "not judged: theirs cannot do it"
    assert "it panicked" in report.notes[0]


def test_our_own_failure_ends_the_row() -> None:
    def fails() -> harness.Result:
        raise harness.SystemFailedError("it ended")

    with pytest.raises(harness.SystemFailedError, match="it ended"):
        harness.in_turn({"ours": fails}, 1)


@pytest.mark.needs("cc")
def test_a_server_that_ends_by_itself_is_not_measured(tmp_path: Path) -> None:
    missing = tmp_path / "nothing-here.log"
    with (
        pytest.raises(harness.SystemFailedError, match=r"nothing-here\.log"),
        harness.serving([harness.tool("broadcast_floor"), missing]),
    ):
        pytest.fail("the floor serves a file that does not exist")


@pytest.mark.needs("cc")
def test_a_delivery_that_is_missing_is_counted(tmp_path: Path) -> None:
    """A consumer of another file than the one appended to gets nothing, and the tool does not hide it."""
    served, appended = tmp_path / "served.log", tmp_path / "appended.log"
    served.write_bytes(b"")
    with (
        pytest.raises(harness.SystemFailedError, match="0 of 1 deliveries"),
        harness.serving([harness.tool("broadcast_floor"), served]) as server,
    ):
        harness.run_tool("subscribers", port=server.port, file=appended, quiet_seconds=1)
