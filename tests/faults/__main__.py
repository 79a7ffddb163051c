"""`python -m tests.faults`: runs scenarios and prints one row of a table for each; exit code 1 when one is broken."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.faults.daemon import NotReadyError, Subject, control, product
from tests.faults.fixtures import isolate
from tests.faults.scenario import MissingFixtureError, Plan, Row, Scenario, declare
from tests.support.requirements import extend_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


@dataclass(frozen=True)
class Entry:
    """Where a scenario is, and the requirements of its fixtures (tests/support/requirements.py)."""

    place: str
    needs: tuple[str, ...] = ()
    long_needs: tuple[str, ...] = ()


SCENARIOS: Final = {
    "kill-loop": Entry("kill_loop:kill_loop"),
    "planted": Entry("bugs:planted", ("strace", "mount", "ext4"), long_needs=("nbd",)),
    "order": Entry("traced:order", ("strace",)),
    "sweep": Entry("traced:sweep", ("strace",)),
    "refusals": Entry("traced:refusals", ("strace",)),
    "starts": Entry("starts:starts", ("strace",)),
    "hang": Entry("hangs:hangs", ("strace",)),
    "full": Entry("disk_full:full_disks", ("mount", "ext4")),
    "full-start": Entry("disk_full:full_starts", ("mount", "ext4")),
    "inodes": Entry("disk_full:no_inodes", ("mount",)),
    "stopped": Entry("peers:stopped"),
    "crowd": Entry("peers:crowd", ("descriptors",)),
    "slow": Entry("peers:slow"),
    "churn": Entry("peers:churn"),
    "memory": Entry("peers:memory", ("mount",)),
    "rsyslog": Entry("shippers:ship_by_rsyslog", ("rsyslogd",)),
    "syslog-ng": Entry("shippers:ship_by_syslog_ng", ("syslog-ng",)),
    "netcat": Entry("shippers:ship_by_netcat", ("nc",)),
    "power": Entry("power:power_cuts", ("mount", "ext4", "xfs", "strace")),
    "cache": Entry("power:volatile_caches", ("ext4", "xfs", "nbd")),
    "writeback": Entry("power:failed_writeback", ("ext4", "xfs", "nbd")),
}
_MOUNTS: Final = {"mount", "ext4", "xfs", "nbd"}
_HEAD: Final = ("scenario", "variant", "runs", "acknowledged", "lost", "twice", "torn", "changed", "other", "s", "")


def scenario(name: str) -> Scenario:
    """Find a scenario by its name on the command line."""
    module, _, function = SCENARIOS[name].place.partition(":")
    found: Scenario = getattr(importlib.import_module(f"tests.faults.{module}"), function)
    return found


def line(row: Row) -> str:
    """Write a row as a line of a table."""
    found = row.findings
    verdict = ("found" if row.expect_broken else "ok") if row.passed else "BROKEN"
    cells = (
        row.scenario,
        row.variant,
        row.runs,
        found.acknowledged,
        found.lost,
        found.twice,
        found.torn,
        found.changed,
        found.other,
        f"{row.seconds:.1f}",
        f"{verdict} {row.remark}".strip(),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _subject(name: str) -> Subject:
    kind, *bugs = name.split("+")
    return control(*bugs) if kind == "control" else product(bugs[0] if bugs else None)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the table is what this program is for


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # through every `finally`: mounts and processes go


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--long", action="store_true", help="the whole proof; else a few seconds each")
    parser.add_argument("--subject", default="collator", help="collator, or control+BUG+… (the harness's own)")
    parser.add_argument("--no-tailsrv", action="store_true", help="the consumer reads the commit mark by itself")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    extend_path()
    plan = Plan(_subject(options.subject), long=options.long, seed=options.seed, through_tailsrv=not options.no_tailsrv)
    _say("| " + " | ".join(_HEAD) + " |\n" + "| --- " * 2 + "| ---: " * 8 + "| --- |")
    broken = False
    isolated = False
    for name in options.scenario or SCENARIOS:
        try:
            needs = {*SCENARIOS[name].needs, *(SCENARIOS[name].long_needs if options.long else ())}
            declare(needs)
            if not isolated and needs & _MOUNTS:
                isolate()
                isolated = True
            for row in scenario(name)(plan):
                _say(line(row))
                if not row.passed:
                    broken = True
                    for note in row.findings.notes:
                        _say(f"  {note}")
        except NotReadyError as error:
            _say(f"| {name} | BROKEN: {error} |")
            broken = True
        except MissingFixtureError as missing:
            _say(f"| {name} | fixture missing: {missing} |")
            broken = True
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
