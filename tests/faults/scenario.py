"""What every scenario shares: its row in the table, its folder, one life of a collator under load."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.faults.checker import Findings, check_file
from tests.faults.daemon import Daemon, Subject, Target
from tests.faults.follower import Follower, MarkFollower
from tests.faults.load import Load, check_pieces
from tests.faults.messages import Stream
from tests.support.requirements import known, missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PRODUCERS = 8
FINISH_SECONDS = 60.0


class MissingFixtureError(Exception):
    """A tool, or a right, that the scenario needs is not here; the message names it."""


_declared: set[str] = set()


def declare(names: Iterable[str]) -> None:
    """Set the requirements that the scenario which runs next is declared with."""
    _declared.clear()
    _declared.update(known(names))


def need(*names: str) -> None:
    """Make sure of these requirements. Raises MissingFixtureError for one that is missing, or that is not declared."""
    for name in names:
        if name not in _declared:
            raise MissingFixtureError(f"{name} is not in the needs of this scenario in tests/faults/__main__.py")
        if (found := missing(name)) is not None:
            raise MissingFixtureError(str(found))


@dataclass
class Row:
    """One line of the table."""

    scenario: str
    variant: str
    runs: int = 0
    findings: Findings = field(default_factory=Findings)
    seconds: float = 0.0
    remark: str = ""
    expect_broken: bool = False

    @property
    def passed(self) -> bool:
        """Whether it came out as it must: no finding, or in a control at least one."""
        return (self.findings.broken > 0) == self.expect_broken


@dataclass(frozen=True)
class Plan:
    """How hard to try: the whole proof, or the few seconds that fit into a test suite."""

    subject: Subject
    long: bool = False
    through_tailsrv: bool = True
    seed: int = 0

    def times(self, short: int, long: int) -> int:
        """Choose a number of runs."""
        return long if self.long else short


Scenario = Callable[[Plan], Iterator[Row]]


@contextlib.contextmanager
def timed(row: Row) -> Iterator[Row]:
    """Count the row's seconds."""
    start = time.monotonic()
    try:
        yield row
    finally:
        row.seconds += time.monotonic() - start


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        yield Path(name)


def make_streams(framing: str, seed: int, count: int = PRODUCERS, size: int | None = None) -> list[Stream]:
    """Give the streams of `count` producers."""
    return [Stream(number, framing, seed=seed, size=size) for number in range(count)]


class Bench:
    """A stream under fault: its file, its producers, its consumer, and the collator's lives, one after the other."""

    def __init__(
        self,
        home: Path,
        subject: Subject,
        *,
        framing: str = "newline",
        sync: str = "always",
        seed: int = 0,
        load: Load | None = None,
        file: Path | None = None,
        follower: Follower | None = None,
        zombies: float = 0.01,
        messages: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.home = home
        self.file = file or home / "stream.log"
        self.argv = [*subject.argv(self.file, framing=framing, sync=sync), *options]
        self.random = random.Random(seed)
        self.target = Target()
        self.load = load or Load(
            self.target, make_streams(framing, seed), zombies=zombies, seed=seed, messages=messages
        )
        self.load.target = self.target
        self.findings = Findings()
        self.log = home / "collator.log"
        self.follower = follower or MarkFollower(self.file, home / "seen")
        self.load.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.load.close()
        self.follower.close()

    def start(self, wrapper: Sequence[str] = (), extra: Sequence[str] = ()) -> Daemon:
        """Begin a life; the caller waits for it, or kills it before it is ready."""
        return Daemon([*self.argv, *extra], self.log, wrapper=wrapper)

    def serve(self, daemon: Daemon) -> None:
        """Wait until it is ready and send the producers there."""
        self.target.move(daemon.wait_ready())

    def broke(self, text: str) -> None:
        """Note a promise broken that is none of lost, twice, torn or changed."""
        self.findings.other += 1
        self.findings.note(text)

    def kill(self, daemon: Daemon) -> None:
        """SIGKILL it, and look at once whether what was seen still stands."""
        daemon.kill()
        self.target.move(None)
        self.findings.add(self.follower.verify())

    def tear(self) -> None:
        """Leave behind FILE's end what a write that was torn leaves: less than a whole message of a producer's."""
        with self.file.open("ab") as file:
            file.write(self.load.streams[0].message(self.random.randrange(50))[:-1])

    def settle(self) -> None:
        """Let a last life take all that is left, end it with SIGTERM, and judge everything."""
        with self.start() as daemon:
            self.serve(daemon)
            broken = self.findings.broken + self.load.findings.broken  # then nobody waits for the end of it
            if not self.load.finish(FINISH_SECONDS if not broken else FINISH_SECONDS / 20):
                waiting = [one.stream.name for one in self.load.producers if one.promised != one.goal]
                self.broke(f"after {FINISH_SECONDS:.0f} s {', '.join(waiting[:4])} … are still waiting")
            code = daemon.stop()
            if code != 0:
                self.broke(f"SIGTERM ended it with {code}: {daemon.said()[-500:]}")
        self.judge(complete=self.load.complete())

    def judge(self, *, complete: bool) -> None:
        """Compare the file with what producers heard and consumers saw."""
        self.findings.add(check_file(self.file, self.load.streams, self.load.promised, complete=complete))
        if self.findings.lost + self.findings.torn == 0:
            self.findings.add(check_pieces(self.file, self.load.pieces))
        self.findings.add(self.follower.verify(everything=True))
        self.findings.add(self.load.findings)
        self.load.findings = Findings()
