"""Power cuts and disks that lie or refuse: what was acknowledged, or seen, must be on the disk afterwards."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING, Final

from tests.faults.checker import Findings
from tests.faults.daemon import NotReadyError, Subject, control
from tests.faults.fixtures import Disk, disk, failing_writes, strace, volatile_cache
from tests.faults.follower import MarkFollower
from tests.faults.scenario import Bench, Plan, Row, folder, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FRAMINGS: Final = ("newline", "u32be")
_PROMISE_SECONDS: Final = 20.0
_EXIT_SECONDS: Final = 10.0
_SLOW: Final = "inject=fdatasync,fsync:delay_enter=60000"  # µs; a disk that takes its time


class Machine(Bench):
    """A bench on a disk that loses power: every life of the collator can end with the machine's."""

    def __init__(
        self,
        home: Path,
        subject: Subject,
        place: Disk,
        *,
        framing: str,
        sync: str,
        seed: int,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        file = place.path / f"stream-{seed}.log"
        self.consumer = MarkFollower(file, home / "seen")
        super().__init__(
            home, subject, framing=framing, sync=sync, seed=seed, file=file, follower=self.consumer, zombies=0.0
        )
        self.place = place
        self._wrapper = wrapper

    def live_until_cut(self, cut: Callable[[], None], moment: float) -> None:
        """Let it acknowledge something, take the power away after `moment` seconds more, and let it die."""
        with self.start(self._wrapper) as daemon:
            self.serve(daemon)
            if not self.load.wait_promised(1, _PROMISE_SECONDS):
                self.findings.other += 1
                self.findings.note(f"nothing acknowledged within {_PROMISE_SECONDS} s: {daemon.said()[-300:]}")
            threading.Event().wait(moment)
            cut()
            self.consumer.pause()
            self.target.move(None)
            daemon.kill()

    def power_on(self, device: Path | None = None) -> None:
        """Mount again; consumers come back before the collator does, and what they see then counts as well."""
        self.place.mount(device)
        self.consumer.look()
        self.consumer.resume()

    def settle_or_say_why_not(self) -> None:
        """Settle; a collator that does not start any more is a finding."""
        try:
            self.settle()
        except NotReadyError as error:
            self.findings.other += 1
            self.findings.note(f"does not start after the cut: {error}")

    def clear(self) -> None:
        """Remove this run's files, for the next one."""
        self.consumer.pause()
        for path in self.place.path.glob(f"{self.file.name}*"):
            path.unlink()
        handle = os.open(self.place.path, os.O_RDONLY)
        os.fsync(handle)  # or the next cut would bring them back
        os.close(handle)


def cut_run(
    subject: Subject, place: Disk, *, framing: str, sync: str, seed: int, cuts: int = 2, slow: bool = False
) -> Findings:
    """Cut a fresh stream's power, and then a grown one's; let it finish; judge."""
    chance = random.Random(seed)
    wrapper = strace("-e", "trace=fdatasync,fsync", "-e", _SLOW) if slow else ()
    with (
        folder() as home,
        Machine(home, subject, place, framing=framing, sync=sync, seed=seed, wrapper=wrapper) as machine,
    ):
        for _ in range(cuts):
            try:
                machine.live_until_cut(place.cut_power, chance.uniform(0, 0.15))
            except NotReadyError as error:
                machine.findings.other += 1
                machine.findings.note(f"does not start after the cut: {error}")
                machine.place.cut_power()
                machine.consumer.pause()
            place.unmount()
            machine.power_on()
        machine.settle_or_say_why_not()
        machine.clear()
        return machine.findings


def power_cuts(plan: Plan) -> Iterator[Row]:
    """Shut ext4 and xfs down under load; the control that does not sync must fail every time."""
    for kind in ("ext4", "xfs"):
        with disk(kind) as place:
            row = Row("power cut", f"{kind} always")
            with timed(row):
                for number in range(plan.times(2, 25)):
                    framing = _FRAMINGS[number % 2]
                    row.findings.add(
                        cut_run(plan.subject, place, framing=framing, sync="always", seed=plan.seed + number)
                    )
                    row.runs += 2
            yield row
            yield from _controls(plan, place)


def _controls(plan: Plan, place: Disk) -> Iterator[Row]:
    """Builds that must fail in the fixture, each time."""
    subjects = [(control("no-sync"), "always"), (control("ack-first"), "always"), (plan.subject, "never")]
    for subject, sync in subjects:
        row = Row("power cut, must fail", f"{place.kind} {subject.name} {sync}", expect_broken=True)
        failed = 0
        with timed(row):
            for number in range(plan.times(1, 10)):
                slow = "ack-first" in subject.name  # or the window is too short to be hit every time
                found = cut_run(subject, place, framing="newline", sync=sync, seed=number, cuts=1 + slow, slow=slow)
                failed += found.broken > 0
                row.findings.add(found)
                row.runs += 1
        row.remark = f"failed {failed} of {row.runs}"
        row.expect_broken = True
        if failed < row.runs:
            row.findings = Findings()
        yield row


def cache_run(subject: Subject, *, framing: str, sync: str, seed: int) -> Findings:
    """Take a disk's volatile cache away under load, bring up what the disk holds, let it finish, judge."""
    chance = random.Random(seed)
    with folder() as home, volatile_cache(("ext4", "xfs")[seed % 2]) as (device, _):
        place = device.disk
        with Machine(home, subject, place, framing=framing, sync=sync, seed=seed) as machine:
            machine.live_until_cut(device.cut_power, chance.uniform(0, 0.3))
            device.close()
            machine.power_on()
            machine.settle_or_say_why_not()
            machine.clear()
            return machine.findings


def volatile_caches(plan: Plan) -> Iterator[Row]:
    """Lose the disk's own cache; the control that does not sync must fail every time."""
    row = Row("disk cache lost", "always")
    with timed(row):
        for number in range(plan.times(1, 20)):
            framing = _FRAMINGS[number // 2 % 2]
            row.findings.add(cache_run(plan.subject, framing=framing, sync="always", seed=plan.seed + number))
            row.runs += 1
    yield row
    row = Row("disk cache lost, must fail", "control+no-sync", expect_broken=True)
    failed = 0
    with timed(row):
        for number in range(plan.times(1, 4)):
            found = cache_run(control("no-sync"), framing="newline", sync="always", seed=number)
            failed += found.broken > 0
            row.findings.add(found)
            row.runs += 1
    row.remark = f"failed {failed} of {row.runs}"
    if failed < row.runs:
        row.findings = Findings()
    yield row


def writeback_run(subject: Subject, kind: str, *, framing: str, seed: int) -> Findings:
    """Let the disk refuse what the kernel writes back: no ACKED after it, exit 1, the next start trusts the disk."""
    with folder() as home, failing_writes(kind) as (device, fixture):
        place = device.disk
        with Machine(home, subject, place, framing=framing, sync="always", seed=seed) as machine:
            with machine.start() as daemon:
                machine.serve(daemon)
                machine.load.wait_promised(1 << 18, _PROMISE_SECONDS)
                (fixture / "inject").touch()
                code = daemon.wait(_EXIT_SECONDS)
                if code != 1:
                    machine.findings.other += 1
                    machine.findings.note(f"a failed writeback ended it with {code}, not 1: {daemon.said()[-300:]}")
                machine.target.move(None)
            (fixture / "inject").unlink()
            _restart_on_the_same_cache(machine)
            machine.consumer.pause()
            place.unmount()
            machine.power_on()  # empty page cache: the file is what the disk holds
            machine.findings.add(machine.follower.verify(everything=True))
            machine.settle_or_say_why_not()
            machine.clear()
            return machine.findings


def _restart_on_the_same_cache(machine: Machine) -> None:
    """Start again while the page cache still shows what never reached the disk; ext4 may refuse to be written."""
    with machine.start() as again:
        try:
            machine.serve(again)
        except NotReadyError:
            return
        machine.load.wait_promised(1 << 16, 5)
        machine.target.move(None)


def failed_writeback(plan: Plan) -> Iterator[Row]:
    """Fail the writeback itself, on ext4 with and without its journal; a retried sync must be found out."""
    for kind in ("ext4-nojournal", "ext4"):
        row = Row("failed writeback", kind)
        with timed(row):
            for number in range(plan.times(1, 10)):
                framing = _FRAMINGS[number % 2]
                row.findings.add(writeback_run(plan.subject, kind, framing=framing, seed=plan.seed + number))
                row.runs += 1
        yield row
    row = Row("failed writeback, must fail", "control+retry-sync", runs=1, expect_broken=True)
    with timed(row):
        row.findings.add(writeback_run(control("retry-sync"), "ext4-nojournal", framing="newline", seed=1))
    yield row
