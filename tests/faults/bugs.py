"""Is the harness any good? Every planted bug has to be found, in seconds, in the control and in the real collator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.faults.daemon import Subject, control, product
from tests.faults.disk_full import full_run
from tests.faults.fixtures import disk, small_tmpfs
from tests.faults.kill_loop import hunt, refuse_misplanted
from tests.faults.power import cut_run, writeback_run
from tests.faults.scenario import Plan, Row, timed
from tests.faults.traced import order_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.checker import Findings

_HUNT_SECONDS: Final = 30.0
_BY_KILLS: Final = ("no-repair", "no-takeover", "forget")
_BY_ORDER: Final = ("no-sync", "ack-first", "withdraw")
_BY_POWER: Final = ("no-sync", "ack-first")


def _once(row: Row, run: Callable[[], Findings]) -> Row:
    with timed(row):
        row.findings.add(run())
        row.runs = 1
    refuse_misplanted(row)
    return row


def _cut(subject: Subject) -> Findings:
    with disk("ext4") as place:
        return cut_run(subject, place, framing="newline", sync="always", seed=1, cuts=2, slow=True)


def _full(subject: Subject) -> Findings:
    with small_tmpfs("size=12m") as place:
        return full_run(subject, place, filler=3 << 20, framing="newline", sync="always", times=1)


def planted(plan: Plan) -> Iterator[Row]:
    """Plant each bug, and look for it in the cheapest scenario that finds it; the long form runs all that find it."""
    makers: list[Callable[[str], Subject]] = [control]
    if plan.subject.name == "collator":
        makers.append(product)
    for make in makers:
        for bug in _BY_ORDER:
            subject = make(bug)
            row = Row("planted, order of calls", subject.name, expect_broken=True)
            yield _once(row, lambda subject=subject: order_run(subject))  # type: ignore[misc]  # its default binds
        for bug in _BY_KILLS:
            yield hunt(make(bug), seconds=_HUNT_SECONDS)
        for bug in _BY_POWER:
            subject = make(bug)
            row = Row("planted, power cut", subject.name, expect_broken=True)
            yield _once(row, lambda subject=subject: _cut(subject))  # type: ignore[misc]  # its default binds
    row = Row("planted, full tmpfs", "control+skip-full", expect_broken=True)
    yield _once(row, lambda: _full(control("skip-full")))
    if plan.long:
        row = Row("planted, failed writeback", "control+retry-sync", expect_broken=True)
        yield _once(row, lambda: writeback_run(control("retry-sync"), "ext4-nojournal", framing="newline", seed=1))
