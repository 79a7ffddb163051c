"""The first commands of a newcomer do what the README says: its sixty seconds with netcat, and `make demo`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.launchers import up
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


def _shell(command: str, seconds: float = PATIENCE) -> str:
    return subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=seconds).stdout


def _follow(command: str, last: str) -> str:
    """What a command that does not end by itself prints, up to this line."""
    shown = ""
    with subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as pipeline:
        assert pipeline.stdout is not None
        while not shown.endswith(f"\n{last}"):
            shown += pipeline.stdout.readline() or pytest.fail(f"ended after {shown!r}")
        os.killpg(pipeline.pid, signal.SIGTERM)
    return shown


@pytest.mark.needs("nc")
def test_the_readmes_sixty_seconds_with_netcat(tmp_path: Path) -> None:
    """Each command of the README's demo does what its comment says."""
    block = re.search(r"^```sh\n(seq.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    acknowledged = re.search(r"^```sh\n(\(echo.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    assert acknowledged is not None
    write, last, index, follow, count, ack = [
        line.partition("#")[0].strip() for line in (block[1] + acknowledged[1]).splitlines()
    ]
    file = tmp_path / "events.log"
    with up(file, "--sync", "never", host="") as stream:
        ports = dict(zip(("4321", "4322", "4323", "4324"), stream.ports.values(), strict=True))

        def local(command: str) -> str:
            for port, actual in ports.items():
                command = command.replace(port, str(actual))
            return f"cd {tmp_path}; {command}"

        def run(command: str) -> str:
            return _shell(local(command))

        run(write)
        wait_until(lambda: file.read_bytes().endswith(b"\n2000\n"), "the lines are in the file")
        assert run(last) == "2000\n"
        wait_until(lambda: run(index) == f"{len(file.read_bytes()) - 25}\n", "the index has all")
        assert _follow(local(follow), "2000\n").startswith("1001\n1002\n")
        assert run(count) == "2000\n"
        assert run(ack).splitlines()[:1] == ["0 0"]
        assert run(ack.replace("echo important", "true")).splitlines()[0].startswith("10 ")


@contextlib.contextmanager
def demo(folder: Path, path: str, seconds: int) -> Iterator[subprocess.Popen[str]]:
    """`make demo DEMO_SECONDS=…`, as it runs once all is installed."""
    commands = Path(sys.executable).parent
    environment = {**os.environ, "DEMO_SECONDS": str(seconds), "TMPDIR": str(folder), "PATH": f"{commands}:{path}"}
    command = [sys.executable, "-m", "compose.demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_make_demo_ends_by_itself_and_shows_a_stream(tmp_path: Path) -> None:
    with demo(tmp_path, os.environ["PATH"], 5) as process:
        shown, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0
    assert re.search(r"producer load │ .* load: ", shown)
    assert re.search(r"consumer │ .* memory: ", shown)
    assert re.search(r"index │ message 3 starts at byte \d+", shown)
    assert not list(tmp_path.iterdir())


def test_without_nc_make_demo_states_that_and_prints_commands_that_work(tmp_path: Path) -> None:
    folder, empty = tmp_path / "tmp", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    with demo(folder, str(empty), 100) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "message:3" not in lines[-1]:
            lines.append(process.stdout.readline() or pytest.fail(f"ended after {lines}"))
        assert "apt-get install netcat-openbsd" in lines[-4]
        follow, write, look_up = (line.partition("│ ")[2].strip() for line in lines[-3:])
        for command in (write, f"{follow} --count 1", f"{look_up} --count 1"):
            ended = subprocess.run(
                ["bash", "-c", command], check=False, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE
            )
            assert (ended.returncode, ended.stderr) == (0, "")
            assert ended.stdout.count("\n") == (command is not write)
        while "│ hello" not in lines[-1]:
            lines.append(process.stdout.readline() or pytest.fail(f"ended after {lines}"))
        process.terminate()
        process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0
