"""`tailsrv-put --follow` beside a log that is written to, rotated and copied at random, and killed at random.

Nothing that is on disk is ever deleted here, so the promise has no exception: each line once, and no line torn.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from tests.client.test_follow import WITHOUT_GENERATIONS
from tests.support.streams import PUT, StreamUnderTest, kill_process, run, started
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS: Final = 12
HEADING: Final = b"# each content begins so\n"


class Log:
    """A log, what was ever written to it, and its rotations."""

    def __init__(self, path: Path, chance: random.Random, heading: bytes) -> None:
        self.path, self.written = path, Counter[bytes]()
        self._chance, self._heading = chance, heading
        self.append()

    def append(self) -> None:
        """Some lines; a heading first, where there is nothing yet."""
        lines = [self._heading] if self._heading and not (self.path.exists() and self.path.stat().st_size) else []
        first = self.written.total()
        numbers = range(first, first + self._chance.randrange(1, 30))
        lines += [b"%d %s\n" % (number, b"x" * self._chance.choice((0, 0, 1, 5, 300))) for number in numbers]
        with self.path.open("ab") as file:
            file.writelines(lines)
        self.written.update(lines)

    def rename(self) -> None:
        """Rotate by rename and create."""
        self._make_room()
        self.path.rename(self._name(1))
        self.append()

    def copytruncate(self) -> None:
        """Rotate by copying."""
        self._make_room()
        shutil.copy2(self.path, self._name(1))
        os.truncate(self.path, 0)
        self.append()

    def _name(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _make_room(self) -> None:
        count = 1
        while self._name(count).exists():
            count += 1
        for number in range(count, 1, -1):
            self._name(number - 1).rename(self._name(number))


@pytest.mark.parametrize("heading", [b"", HEADING], ids=["plain", "heading"])
@pytest.mark.parametrize("generations", [True, False], ids=["generations", "none"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("FOLLOW_SEEDS", "2"))))
def test_each_line_comes_once_whatever_rotation_does(
    tmp_path: Path, seed: int, generations: bool, heading: bytes
) -> None:
    chance = random.Random(seed)
    log = Log(tmp_path / "app.log", chance, heading)
    rotate = chance.choice((log.rename, log.copytruncate))
    actions = [chance.choice((log.append, rotate, None)) for _ in range(STEPS)]
    said = b""
    with StreamUnderTest(tmp_path / "s.log") as stream:
        program = PUT if generations else [sys.executable, "-c", WITHOUT_GENERATIONS]
        command = [*program, stream.acks, "--follow", str(log.path)]
        while actions:
            if chance.random() < 0.5:
                ended = run([*command, "--once"])
                said += ended.stderr
                assert ended.returncode == 0, said.decode()
            with started(command) if chance.random() < 0.5 else contextlib.nullcontext() as process:
                for action in take_some(actions, chance):
                    action()
                if process is not None:
                    wait_until(lambda: chance.random() < 0.1)
                    kill_process(process)
        ended = run([*command, "--once"])
        said += ended.stderr
        assert ended.returncode == 0, said.decode()
        found = Counter(stream.content().splitlines(keepends=True))
    assert (found - log.written, log.written - found) == (Counter(), Counter()), said.decode()


def take_some(actions: list[Callable[[], None] | None], chance: random.Random) -> list[Callable[[], None]]:
    """A few of the next actions; None stands for a pause."""
    count = chance.randrange(1, 4)
    taken = [action for action in actions[:count] if action is not None]
    del actions[:count]
    return taken
