"""Calls of a start that are refused for a while: recovery, the new journal, the mark, a torn end that is moved aside.

Every file that a start touches meets a lack of space, descriptors or memory at the Nth call of each kind, for every N
until a start needs no more. It has to go on by itself, in the same life.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.faults.scenario import Plan, Row, folder, timed
from tests.faults.traced import PLACES, WRITES, inject, injected, live, refuse_none, small_bench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.checker import Findings
    from tests.faults.daemon import Subject

_NEW: Final = (".producers", ".commit")
"""Files that are written under a temporary name first."""

_CASES: Final = (
    ("no space", f"openat,{WRITES},ftruncate,rename,renameat,renameat2", "ENOSPC"),
    ("no descriptors", "openat", "EMFILE"),
    ("no memory", f"openat,{WRITES}", "ENOMEM"),
)


def _paths(file: Path) -> list[Path]:
    """Every name that a start opens or writes, but the rescued file's, which holds the time."""
    temporary = [f".{file.name}{suffix}.new" for suffix in _NEW]
    named = [file.with_name(file.name + place) for place in PLACES]
    # strace compares a name in a directory's descriptor as it is given, and what is open by its path.
    return [*named, *(file.with_name(name) for name in temporary), *(Path(name) for name in temporary)]


def start_run(subject: Subject, calls: str, error: str, number: int, *, first: bool) -> tuple[Findings, bool]:
    """Refuse the Nth of each of these calls; `first`: of a new stream. False: it never made so many."""
    with folder() as home, small_bench(home, subject, framing="newline") as bench:
        if not first:
            with bench.start() as daemon:
                live(bench, daemon, 0.2)
            bench.tear()
        spec = f"{calls}:error={error}:when={number}"
        with bench.start(inject(home, spec, *_paths(bench.file))) as daemon:
            code = live(bench, daemon, 40)
        met = injected(home)
        if met and code != 0:
            bench.broke(f"{error} at call {number} of {calls} ended a start with {code}: {daemon.said()[-400:]}")
        elif met and not bench.load.complete():
            bench.broke(f"{error} at call {number} of {calls}: it did not go on by itself: {daemon.said()[-400:]}")
        bench.findings.add(bench.follower.verify())
        bench.settle()
        return bench.findings, met


def starts(plan: Plan) -> Iterator[Row]:
    """Refuse each call of a first start, and of one that finds a torn end."""
    for name, calls, error in _CASES:
        row = Row(f"{name} at a start", error)
        with timed(row):
            for first in (True, False):
                for number in range(1, 40) if plan.long else ((1, 4) if error == "ENOSPC" else (2,)):
                    found, met = start_run(plan.subject, calls, error, number, first=first)
                    row.findings.add(found)
                    row.runs += met
                    if not met:
                        break
        refuse_none(row)
        yield row
