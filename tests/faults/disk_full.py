"""Disks that fill up and are emptied again, and file systems with no room for another file."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from tests.faults.fixtures import disk, run, small_tmpfs
from tests.faults.follower import MarkFollower
from tests.faults.scenario import Bench, Plan, Row, folder, timed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.checker import Findings
    from tests.faults.daemon import Daemon, Subject

_MEBIBYTE: Final = 1 << 20
_QUIET_SECONDS: Final = 0.7  # without a promise, under load: the disk is full
_RESUME_SECONDS: Final = 15.0
_MORE_THAN_THERE_IS: Final = 64 * _MEBIBYTE  # bytes acknowledged


def health(path: Path) -> int:
    """Ask /healthz on a Unix socket; gives the status, 0 when nobody answers."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        words = sock.recv(4096).split(b" ", 2)
        return int(words[1]) if len(words) > 1 else 0
    return 0


def _fill(place: Path, size: int) -> Path:
    filler = place / "filler"
    with filler.open("wb") as file:
        file.write(bytes(size))
    return filler


def full_run(subject: Subject, place: Path, *, filler: int, framing: str, sync: str, times: int) -> Findings:
    """Let a small disk fill up under load and make room again, `times` times in one life of the collator."""
    with folder() as home:
        file = place / "stream.log"
        asks = subject.name == "collator"
        options = ("--metrics", f"unix:{home}/metrics") if asks else ()
        follower = MarkFollower(file, home / "seen")
        with Bench(
            home, subject, framing=framing, sync=sync, file=file, follower=follower, zombies=0.0, options=options
        ) as bench:
            fillers = [_fill_named(place, number, filler) for number in range(times)]
            with bench.start() as daemon:
                bench.serve(daemon)
                for number, taken in enumerate(fillers):
                    _wait_until_full(bench, daemon)
                    if asks and (status := health(home / "metrics")) != 503:
                        bench.broke(f"/healthz says {status} on a full disk")
                    with taken.open("wb"):
                        pass  # truncated: there is room
                    if not bench.load.wait_promised(filler // 4, _RESUME_SECONDS):
                        bench.broke(f"does not go on by itself when there is room (the {number + 1}. time)")
                    if asks and number == 0 and bench.load.wait_promised(1, 1) and health(home / "metrics") == 0:
                        bench.broke("/healthz does not answer")
                _wait_until_full(bench, daemon)
                bench.kill(daemon)
            for taken in fillers:
                taken.unlink()
            bench.load.window = 1 << 12
            run("mount", "-o", "remount,size=256m", place)
            bench.settle()
            return bench.findings


def _fill_named(place: Path, number: int, size: int) -> Path:
    return _fill(place, size).rename(place / f"filler-{number}")


def _wait_until_full(bench: Bench, daemon: Daemon) -> None:
    """Wait until nothing is promised any more; the collator has to be there still."""
    while bench.load.wait_promised(1, _QUIET_SECONDS):
        if sum(bench.load.promised.values()) > _MORE_THAN_THERE_IS:
            bench.broke("more is acknowledged than the disk has room for")
            return
    if daemon.process.poll() is not None:
        bench.broke(f"a full disk ended it with {daemon.process.returncode}: {daemon.said()[-300:]}")


def ext4_run(subject: Subject, framing: str) -> Findings:
    """Let a small ext4 fill up: there fdatasync still works while writes are refused."""
    with folder() as home, disk("ext4-small") as place:
        file = place.path / "stream.log"
        follower = MarkFollower(file, home / "seen")
        with Bench(home, subject, framing=framing, sync="always", file=file, follower=follower, zombies=0.0) as bench:
            taken = [_fill_named(place.path, number, 4 * _MEBIBYTE) for number in range(2)]
            with bench.start() as daemon:
                bench.serve(daemon)
                _wait_until_full(bench, daemon)
                taken[0].unlink()
                if not bench.load.wait_promised(_MEBIBYTE, _RESUME_SECONDS):
                    bench.broke("does not go on by itself when there is room")
                bench.load.finishing()
                bench.load.wait_promised(64 * _MEBIBYTE, 1)
                taken[1].unlink()
                bench.load.wait_promised(64 * _MEBIBYTE, 1)
                bench.kill(daemon)
            bench.settle()
            bench.follower.close()
            return bench.findings


def full_disks(plan: Plan) -> Iterator[Row]:
    """Fill a small tmpfs and a small ext4 under load, make room, and see it go on by itself."""
    for sync in ("always", "never"):
        row = Row("full tmpfs", sync)
        with timed(row):
            for number in range(plan.times(1, 5)):
                framing = ("newline", "u32be")[number % 2]
                with small_tmpfs("size=12m") as place:
                    row.findings.add(
                        full_run(plan.subject, place, filler=3 * _MEBIBYTE, framing=framing, sync=sync, times=2)
                    )
                row.runs += 1
        yield row
    row = Row("full ext4", "always")
    with timed(row):
        for number in range(plan.times(1, 5)):
            row.findings.add(ext4_run(plan.subject, ("newline", "u32be")[number % 2]))
            row.runs += 1
    yield row


def _wait_at_start(bench: Bench, daemon: Daemon, home: Path) -> None:
    """Judge a start that can't go on: it listens, tells why, acknowledges nothing."""
    if (status := health(home / "metrics")) != 503:
        bench.broke(f"/healthz says {status} while a start waits")
    if bench.load.wait_promised(1, _QUIET_SECONDS):
        bench.broke("acknowledges what it has no room for")
    if (code := daemon.process.poll()) is not None:
        bench.broke(f"a start without room ended with {code}: {daemon.said()}")
    said = [line for line in daemon.said().splitlines() if '"disk full"' in line]
    if len(said) != 1 or "stream.log" not in said[0]:
        bench.broke(f"does not say once which file has no room: {daemon.said()}")


def start_run(subject: Subject, place: Path, *, framing: str, sync: str) -> Findings:
    """Start on a full disk, with a torn end that has to be moved aside, and make room."""
    with folder() as home:
        file = place / "stream.log"
        follower = MarkFollower(file, home / "seen")
        options = ("--metrics", f"unix:{home}/metrics")
        with Bench(
            home, subject, framing=framing, sync=sync, file=file, follower=follower, zombies=0.0, options=options
        ) as bench:
            with bench.start() as daemon:
                bench.serve(daemon)
                bench.load.wait_promised(_MEBIBYTE, 10)
                bench.kill(daemon)
            bench.tear()
            filler = _fill_up(place)
            with bench.start() as daemon:
                bench.serve(daemon)
                _wait_at_start(bench, daemon, home)
                with filler.open("wb"):
                    pass  # truncated: there is room
                if not bench.load.wait_promised(_MEBIBYTE, _RESUME_SECONDS):
                    bench.broke("does not go on by itself when there is room")
                bench.kill(daemon)
            filler.unlink()
            bench.load.window = 1 << 12
            run("mount", "-o", "remount,size=256m", place)
            bench.settle()
            return bench.findings


def _fill_up(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    return filler


def full_starts(plan: Plan) -> Iterator[Row]:
    """Start on a full tmpfs: it waits, listening, and goes on by itself."""
    for sync in ("always", "never"):
        row = Row("start on a full tmpfs", sync)
        with timed(row):
            for number in range(plan.times(1, 5)):
                framing = ("newline", "u32be")[number % 2]
                with small_tmpfs("size=24m") as place:
                    row.findings.add(start_run(plan.subject, place, framing=framing, sync=sync))
                row.runs += 1
        yield row


def no_inodes(plan: Plan) -> Iterator[Row]:
    """Leave too few inodes for the stream's files: a start listens, says why it waits, and goes on when there are."""
    row = Row("no inodes", "tmpfs")
    with timed(row), folder() as home:
        for inodes in (1, 2, 3):
            with small_tmpfs(f"size=64m,nr_inodes={inodes}") as place:
                file = place / "stream.log"
                follower = MarkFollower(file, home / f"seen-{inodes}")
                options = ("--metrics", f"unix:{home}/metrics")
                with Bench(home, plan.subject, file=file, follower=follower, options=options) as bench:
                    with bench.start() as daemon:
                        bench.serve(daemon)
                        _wait_at_start(bench, daemon, home)
                        run("mount", "-o", "remount,nr_inodes=100", place)
                        if not bench.load.wait_promised(_MEBIBYTE, _RESUME_SECONDS):
                            bench.broke("does not go on by itself when there are inodes")
                        bench.kill(daemon)
                    bench.settle()
                    bench.follower.close()
                    row.findings.add(bench.findings)
                    row.runs += 1
    yield row
