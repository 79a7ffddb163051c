"""What strace can do to a collator: kill it at every call there is, fail any call, and show the order of calls."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tests.faults.checker import Findings
from tests.faults.daemon import NotReadyError, Subject, Target, product
from tests.faults.fixtures import strace
from tests.faults.load import Load
from tests.faults.scenario import Bench, Plan, Row, folder, make_streams, need, timed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.daemon import Daemon

WRITES: Final = "write,writev,pwrite64,pwritev,pwritev2"
_SYNCS: Final = "fdatasync,fsync,sync_file_range"
_RENAMES: Final = "rename,renameat,renameat2,link,linkat,unlink,unlinkat"
CRASH_CALLS: Final = (*WRITES.split(","), *_SYNCS.split(","), "ftruncate", *_RENAMES.split(","))
_QUICK_CALLS: Final = ("pwrite64", "writev", "fdatasync", "ftruncate", "renameat")
_LIFE_SECONDS: Final = 20.0
PLACES: Final = ("", ".producers", ".commit")


def small_bench(home: Path, subject: Subject, *, framing: str, sync: str = "always", messages: int = 30) -> Bench:
    """Give a bench with four producers that send a few messages each and end."""
    target = Target()
    load = Load(target, make_streams(framing, 7, count=4), window=1 << 12, messages=messages)
    return Bench(home, subject, framing=framing, sync=sync, load=load, seed=7)


def live(bench: Bench, daemon: Daemon, seconds: float = _LIFE_SECONDS) -> int | None:
    """Let it serve until the load is through, then stop it; its exit code, however it came to end."""
    try:
        bench.serve(daemon)
    except NotReadyError:
        code = daemon.wait(5)
        bench.target.move(None)
        return code
    ended = threading.Event()

    def watch() -> None:
        daemon.process.wait()
        ended.set()
        bench.load.progress.set()

    threading.Thread(target=watch, daemon=True).start()
    while not bench.load.complete() and not ended.is_set() and seconds > 0:
        bench.load.progress.clear()
        bench.load.progress.wait(0.05)
        seconds -= 0.05
    bench.target.move(None)
    return daemon.stop()


def crash_point(subject: Subject, call: str, number: int, *, framing: str, sync: str) -> tuple[Findings, bool]:
    """Kill it at its Nth `call`, under load, and let the next life finish; False: it never made that many."""
    with folder() as home, small_bench(home, subject, framing=framing, sync=sync) as bench:
        with bench.start(strace("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")) as daemon:
            killed = live(bench, daemon) == -9
        bench.findings.add(bench.follower.verify())
        bench.settle()
        return bench.findings, killed


def recovery_point(bench: Bench, call: str, number: int) -> bool:
    """Leave a torn end, kill the recovery at its Nth `call`; False: it never made that many."""
    bench.tear()
    with bench.start(strace("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")) as daemon:
        try:
            daemon.wait_ready()
        except NotReadyError:
            killed = daemon.wait(5) == -9
        else:
            killed = daemon.stop() == -9
    bench.findings.add(bench.follower.verify())
    return killed


def sweep(plan: Plan) -> Iterator[Row]:
    """Kill at every write, sync, truncate, rename there is: under load, and in a recovery with a torn end."""
    calls = CRASH_CALLS if plan.long else _QUICK_CALLS
    variants = [("newline", "always")]
    if plan.long:
        variants += [("u32be", "always"), ("newline", "never")]
    for framing, sync in variants:
        row = Row("crash points", f"load {sync} {framing}")
        with timed(row):
            for call in calls:
                number = 1
                while True:
                    found, killed = crash_point(plan.subject, call, number, framing=framing, sync=sync)
                    row.findings.add(found)
                    row.runs += killed
                    number += 1 if plan.long else 4
                    if not killed:
                        break
        refuse_none(row)
        yield row
    if plan.subject.name == "collator":
        yield _compaction(plan)
    for framing, sync in variants:
        row = Row("crash points", f"recovery {sync} {framing}")
        with timed(row), folder() as home, small_bench(home, plan.subject, framing=framing, sync=sync) as bench:
            with bench.start() as daemon:
                live(bench, daemon, 0.2)
            for call in calls:
                number = 1
                while recovery_point(bench, call, number):
                    row.runs += 1
                    number += 1 if plan.long else 2
            bench.settle()
            row.findings.add(bench.findings)
        refuse_none(row)
        yield row


def _compaction(plan: Plan) -> Row:
    """Kill at every call of a collator whose journal begins anew after every few commits."""
    row = Row("crash points", "compaction")
    calls = ("pwrite64", "fdatasync", "fsync", *_RENAMES.split(",")) if plan.long else ("renameat",)
    with timed(row):
        for call in calls:
            number, killed = 1, True
            while killed:
                found, killed = crash_point(product("compacting"), call, number, framing="newline", sync="always")
                row.findings.add(found)
                row.runs += killed
                number += 1 if plan.long else 6
    refuse_none(row)
    return row


def refuse_none(row: Row) -> None:
    """Count a sweep that met no call at all as broken: it has shown nothing."""
    if not row.runs:
        row.findings.other += 1
        row.findings.note("it never made any of these calls: the list of calls is out of date")


_CALL = re.compile(
    r"^(\d+) +(?:(\w+)\((?:(\d+)<([^>]*)>)?(.*)|<\.\.\. (\w+) resumed>(.*))$",
)
_RESULT = re.compile(r"\) += (-?\d+)")
_OFFSET = re.compile(r", (\d+)\) += -?\d+")
_ACKED = re.compile(r'(?:"|\\n)(\d+) (\d+)(?=\\n)')
_MARK = re.compile(r'"(\d{20}) [0-9a-f]{8}\\n')


class Order:
    """Reads a trace: at each ACKED and each mark, the bytes that it names must be written, and synced after that."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.findings = Findings()
        self.acks = self.marks = 0
        self._written: dict[str, int] = defaultdict(int)
        self._synced: dict[str, int] = defaultdict(int)
        self._open: dict[str, tuple[str, str, str, int]] = {}

    def read(self, trace: Path) -> None:
        """Go through the trace's lines in order."""
        for line in trace.read_text(errors="replace").splitlines():
            match = _CALL.match(line)
            if match is None:
                continue
            thread, call, _, path, rest, resumed, tail = match.groups()
            if resumed:
                began = self._open.pop(thread, None)
                if began is not None:
                    self._ended(began[0], began[1], began[2] + tail, began[3])
                continue
            was = self._written[path or ""]
            self._begun(call, path or "", rest)
            if "<unfinished" in rest:
                self._open[thread] = (call, path or "", rest.partition(" <unfinished")[0], was)
            else:
                self._ended(call, path or "", rest, was)

    def _begun(self, call: str, path: str, rest: str) -> None:
        if path == f"{self.file}.commit" and "write" in call:
            mark = _MARK.search(rest)
            if mark and int(mark[1]):
                self.marks += 1
                self._due(int(mark[1]), "the mark")
        elif path.startswith(("TCP", "socket", "UNIX")) and ("send" in call or "write" in call):
            for acked in _ACKED.finditer(rest):
                self.acks += int(acked[1]) > 0
                self._due(int(acked[2]), "ACKED")

    def _due(self, end: int, what: str) -> None:
        if end > self._synced[self.file]:
            self.findings.other += 1
            self.findings.note(f"{what} names byte {end}; synced is {self._synced[self.file]} of {self.file}")

    def _ended(self, call: str, path: str, rest: str, was: int) -> None:
        result = _RESULT.search(rest)
        if result is None or int(result[1]) < 0:
            return
        if call in _SYNCS:
            self._synced[path] = max(self._synced[path], was)
        elif "write" in call:
            offset = _OFFSET.search(rest) if call.startswith("pwrite") else None
            start = int(offset[1]) if offset else self._written[path]
            self._written[path] = max(self._written[path], start + int(result[1]))


def order_run(subject: Subject, framing: str = "newline") -> Findings:
    """Trace a load from start to end and judge the order of its calls."""
    with folder() as home:
        trace = home / "trace"
        need("strace")
        words = ("strace", "-D", "-f", "-qq", "-y", "-s", "4096", "-o", str(trace), "-e", "signal=none", "-e")
        watched = f"trace={WRITES},{_SYNCS},sendto,sendmsg,sendmmsg"
        with small_bench(home, subject, framing=framing, messages=40) as bench:
            order = Order(bench.file)
            with bench.start((*words, watched)) as daemon:
                live(bench, daemon)
            order.read(trace)
            order.findings.acknowledged = order.acks
            if not order.acks or not order.marks:
                raise NotReadyError(f"the trace shows {order.acks} acknowledgements and {order.marks} marks")
            return order.findings


def order(plan: Plan) -> Iterator[Row]:
    """Look at each ACKED and each move of the mark: the sync that makes it true has ended before."""
    row = Row("order of calls", "always")
    with timed(row):
        for framing in ("newline", "u32be"):
            row.findings.add(order_run(plan.subject, framing))
            row.runs += 1
    yield row


def inject(home: Path, spec: str, *paths: Path) -> tuple[str, ...]:
    """Give what to put before a command so that calls on `paths` meet `spec`; `injected` tells whether one did."""
    calls = spec.partition(":")[0]
    where = [word for path in paths for word in ("-P", str(path))]
    words = strace("-e", f"trace={calls}", "-e", f"inject={spec}", *where)
    return tuple(str(home / "injected") if word == "/dev/null" else word for word in words)


def injected(home: Path) -> bool:
    """Whether a call has met what `inject` put in its way."""
    return "(INJECTED" in (home / "injected").read_text()


def refuse_run(subject: Subject, spec: str, beside: str, *, ends: bool, framing: str) -> tuple[Findings, bool]:
    """Let calls on FILE + `beside` fail as `spec` says; `ends`: it has to exit 1, else to go on by itself.

    False when it never made the call.
    """
    with folder() as home, small_bench(home, subject, framing=framing) as bench:
        wrapper = inject(home, spec, bench.file.with_name(bench.file.name + beside))
        with bench.start(wrapper) as daemon:
            code = live(bench, daemon, 3 if spec.endswith("+") else 12)
        met = injected(home)
        for_ever = spec.endswith("+")
        if met and ends and code != 1:
            bench.broke(f"{spec} on FILE{beside} ended it with {code}, not 1: {daemon.said()[-300:]}")
        if met and not ends and code != 0:
            bench.broke(f"{spec} on FILE{beside} ended it with {code}: {daemon.said()[-300:]}")
        if met and not ends and not for_ever and not bench.load.complete():
            bench.broke(f"{spec} on FILE{beside}: it did not go on by itself")
        bench.findings.add(bench.follower.verify())
        bench.settle()
        return bench.findings, met


def refusals(plan: Plan) -> Iterator[Row]:
    """EIO at the Nth sync or write: exit 1. ENOSPC at the Nth write: go on by itself. Once, and for ever."""
    cases = [
        ("EIO at a sync", _SYNCS, "EIO", ("", ".producers"), True),
        ("EIO at a write", WRITES, "EIO", ("", ".producers"), True),
        ("ENOSPC at a write", WRITES, "ENOSPC", PLACES, False),
    ]
    for name, calls, error, places, ends in cases:
        for again in ("", "+"):
            row = Row(name, "for ever" if again else "once")
            with timed(row):
                for place in (
                    places[:2] if again else places
                ):  # a mark is rewritten in place: it is never refused for ever
                    for number in range(1, 40) if plan.long else (2,):
                        spec = f"{calls}:error={error}:when={number}{again}"
                        found, met = refuse_run(plan.subject, spec, place, ends=ends, framing="newline")
                        row.findings.add(found)
                        row.runs += met
                        if not met:
                            break
            yield row
