"""Kill loop: SIGKILL at random moments, in recovery too, while eight producers send and a consumer follows."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.faults.checker import Findings
from tests.faults.daemon import NotReadyError
from tests.faults.follower import ServedFollower
from tests.faults.scenario import Bench, Plan, Row, folder, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.daemon import Subject

_KILLS_A_FILE: Final = 20  # then the whole file is checked and another one begun
_LIFE: Final = 0.12  # s; the longest that a collator lives under load
_TORN: Final = 0.25  # the share of kills after which FILE ends in a torn write, as larger writes would leave one
_BEFORE_READY: Final = 0.2  # the share of kills that fall into start and recovery


def kill_round(
    subject: Subject, framing: str, sync: str, kills: int, seed: int, *, through_tailsrv: bool = False
) -> Findings:
    """Kill a collator `kills` times over one file; then let it finish and check everything."""
    with folder() as home, contextlib.ExitStack() as stack:
        file = home / "stream.log"
        follower = ServedFollower(file, home / "seen") if through_tailsrv else None
        bench = stack.enter_context(
            Bench(home, subject, framing=framing, sync=sync, seed=seed, file=file, follower=follower)
        )
        start_seconds = 0.1
        served = False
        never = threading.Event()
        for _ in range(kills):
            began = time.monotonic()
            with bench.start() as daemon:
                if bench.random.random() < _BEFORE_READY:
                    never.wait(bench.random.uniform(0, start_seconds))
                else:
                    bench.serve(daemon)
                    served = True
                    start_seconds = time.monotonic() - began
                    never.wait(bench.random.uniform(0, _LIFE))
                bench.kill(daemon)
            if served and bench.random.random() < _TORN:
                bench.tear()
        bench.settle()
        return bench.findings


def _run_round(plan: Plan, framing: str, sync: str, kills: int, number: int) -> Findings:
    try:
        return kill_round(plan.subject, framing, sync, kills, plan.seed + number, through_tailsrv=plan.through_tailsrv)
    except NotReadyError as error:
        found = Findings(other=1)
        found.note(f"does not start again: {error}")
        return found


def kill_loop(plan: Plan) -> Iterator[Row]:
    """Kill loop for each of always/never and newline/u32be."""
    for sync in ("always", "never"):
        for framing in ("newline", "u32be"):
            row = Row("kill loop", f"{sync} {framing}")
            with timed(row):
                left = plan.times(5, 500)
                while left > 0:
                    kills = min(left, _KILLS_A_FILE)
                    row.findings.add(_run_round(plan, framing, sync, kills, left))
                    row.runs += kills
                    left -= kills
            yield row


def refuse_misplanted(row: Row) -> None:
    """Count nothing as found when the planting itself failed, and not the collator."""
    if any("Traceback" in note for note in row.findings.notes):
        row.remark = "the bug cannot be planted any more: see planted.py"
        row.findings = Findings()


def hunt(subject: Subject, *, framing: str = "newline", sync: str = "always", seconds: float = 60) -> Row:
    """Kill until something is found; the row's seconds say how soon a planted bug is seen."""
    row = Row("planted, kill loop", subject.name, expect_broken=True)
    plan = Plan(subject, through_tailsrv=False)
    with timed(row):
        deadline = time.monotonic() + seconds
        while not row.findings.broken and time.monotonic() < deadline:
            row.findings.add(_run_round(plan, framing, sync, 4, row.runs))
            row.runs += 4
    refuse_misplanted(row)
    return row
