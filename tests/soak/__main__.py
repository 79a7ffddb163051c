"""`python -m tests.soak [--short] [--harsh]`: ten minutes, or ten seconds, and what was found."""

from __future__ import annotations

import argparse
import sys

from tests.soak.run import Outcome, soak

MEMORY_MARGIN = 3 << 20
"""The allocator's own ups and downs, in bytes."""


def verdict(outcome: Outcome) -> list[str]:
    """What is wrong with it; nothing when all is well."""
    wrong = list(outcome.errors)
    if outcome.after.descriptors > outcome.before.descriptors:
        wrong.append("descriptors were left behind")
    if outcome.after.threads > outcome.before.threads:
        wrong.append("threads were left behind")
    if outcome.after.memory > outcome.before.memory + MEMORY_MARGIN:
        wrong.append("memory has grown")
    wrong += [f"not one {kind}" for kind, visits in outcome.visits.items() if not visits]
    return wrong


def main() -> int:
    """Run it, print what was found; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--short", action="store_true", help="ten seconds")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument(
        "--harsh", action="store_true", help="also scrape, probe and signal the daemon, and read its log in bursts"
    )
    given = parser.parse_args()
    if given.short:
        outcome = soak(8.0, flood_seconds=1.0, flood_rate=2000, harsh=given.harsh)
    else:
        outcome = soak(given.seconds, flood_seconds=20.0, flood_rate=5000, harsh=given.harsh)
    out = [f"{visits:>9,} visits of a {kind}" for kind, visits in outcome.visits.items()]
    out.append(f"{outcome.received:>9,} bytes received and checked")
    for when, held in (("before", outcome.before), ("after", outcome.after)):
        out.append(f"{when:>9}: {held.descriptors} descriptors, {held.threads} threads, {held.memory / 2**20:.1f} MiB")
    wrong = verdict(outcome)
    sys.stdout.write("\n".join([*out, *wrong, "FAILED" if wrong else "ok", ""]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
