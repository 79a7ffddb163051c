"""`python -m tests.faults`: runs scenarios and prints one row of a table for each; exit code 1 when one is broken."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.faults.daemon import NotReadyError, Subject, control, product
from tests.faults.rigs import isolate
from tests.faults.scenario import MissingRigError, Plan, Row, Scenario, declare
from tests.support.requirements import extend_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


@dataclass(frozen=True)
class Entry:
    """Where a scenario is, and the requirements of its rigs (tests/support/requirements.py)."""

    place: str
    needs: tuple[str, ...] = ()
    long_needs: tuple[str, ...] = ()


SCENARIOS: Final = {
    "storm": Entry("kills:storm"),
    "planted": Entry("bugs:planted", ("strace", "mount", "ext4"), long_needs=("nbd",)),
    "order": Entry("traced:order", ("strace",)),
    "sweep": Entry("traced:sweep", ("strace",)),
    "refusals": Entry("traced:refusals", ("strace",)),
    "starts": Entry("starts:starts", ("strace",)),
    "hang": Entry("hangs:hangs", ("strace",)),
    "full": Entry("rooms:full_disks", ("mount", "ext4")),
    "full-start": Entry("rooms:full_starts", ("mount", "ext4")),
    "inodes": Entry("rooms:no_inodes", ("mount",)),
    "stopped": Entry("peers:stopped"),
    "crowd": Entry("peers:crowd", ("descriptors",)),
    "slow": Entry("peers:slow"),
    "visitors": Entry("peers:visitors"),
    "memory": Entry("peers:memory", ("mount",)),
    "rsyslog": Entry("shippers:ship_by_rsyslog", ("rsyslogd",)),
    "syslog-ng": Entry("shippers:ship_by_syslog_ng", ("syslog-ng",)),
    "netcat": Entry("shippers:ship_by_netcat", ("nc",)),
    "power": Entry("power:power_cuts", ("mount", "ext4", "xfs", "strace")),
    "cache": Entry("power:volatile_caches", ("ext4", "xfs", "nbd")),
    "writeback": Entry("power:failed_writeback", ("ext4", "xfs", "nbd")),
    "storm": "kills:storm",
    "planted": "bugs:planted",
    "order": "traced:order",
    "sweep": "traced:sweep",
    "refusals": "traced:refusals",
    "starts": "starts:starts",
    "hang": "hangs:hangs",
    "full": "rooms:full_disks",
    "full-start": "rooms:full_starts",
    "inodes": "rooms:no_inodes",
    "stopped": "peers:stopped",
    "crowd": "peers:crowd",
    "slow": "peers:slow",
    "visitors": "peers:visitors",
    "memory": "peers:memory",
    "shippers": "shippers:shippers",
    "power": "power:power_cuts",
    "cache": "power:volatile_caches",
    "writeback": "power:failed_writeback",
