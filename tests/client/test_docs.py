"""Every example of the clients' pages runs, against real daemons at the addresses that it names."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import open_files
from tests.support.streams import StreamUnderTest, lines, run
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("clients.md", "tailsrv-cat.md", "tailsrv-put.md")
COMPARISONS = ("from-kcat.md", "from-nats.md", "from-redis-streams.md")


def examples(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


PROGRAMS = [pytest.param(text, id=f"{page}-{n}") for page in PAGES for n, text in enumerate(examples(page, "python"))]
COMMANDS = [line for page in PAGES for block in examples(page, "sh") for line in block.splitlines()] + [
    cell.replace("\\|", "|")
    for page in COMPARISONS
    for cell in re.findall(r"\| `((?:[^`])*)` \|$", (DOCS / page).read_text(), re.MULTILINE)
]


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamUnderTest]:
    """A stream with some messages, and a folder with what the examples read."""
    folder = tmp_path / "work"
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("cat", "put"):
        script = commands / f"tailsrv-{name}"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tailsrv_client.{name} "$@"\n')
        script.chmod(0o755)
    folder.mkdir()
    (folder / "day.csv").write_bytes(b"1,2\n3,4\n")
    (folder / "app.log").write_bytes(b"started\n")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    monkeypatch.chdir(folder)
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 100))
        yield stream


def localised(stream: StreamUnderTest, text: str) -> str:
    """The example with the addresses of the daemons that it needs."""
    for port, address in (("4321", "broadcast"), ("4322", "raw"), ("4323", "acks"), ("4324", "index")):
        for separator in (":", " "):
            if f"fileserver{separator}{port}" in text:
                text = text.replace(f"fileserver{separator}{port}", getattr(stream, address).replace(":", separator))
    return text


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_of_the_pages_runs(stream: StreamUnderTest, text: str) -> None:
    ended = run([sys.executable, "-W", "error", "-c", localised(stream, text)])
    assert (ended.returncode, ended.stderr) == (0, b"")
    if "print(" in text:
        assert ended.stdout


def goes_on(command: str) -> bool:
    """Whether it follows for ever."""
    ends = ("--until", "--count", "--once", "head")
    return ("tailsrv-cat" in command or "--follow" in command) and not any(word in command for word in ends)


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=pytest.mark.needs("nc") if re.search(r"\bnc\b", each) else ()) for each in COMMANDS],
)
def test_a_command_of_the_pages_runs(stream: StreamUnderTest, command: str) -> None:
    local = localised(stream, command)
    before = len(stream.content())
    if not goes_on(command):
        ended = run(["bash", "-o", "pipefail", "-c", local])
        head = "| head" in command  # who writes to it may die of SIGPIPE
        assert ended.returncode in ({0, 128 + signal.SIGPIPE} if head else {0})
        if "tailsrv-put" in command:
            wait_until(lambda: len(stream.content()) > before)
        elif ">" not in command and "time:" not in command:
            assert ended.stdout
        return
    with subprocess.Popen(["bash", "-c", f"exec {local}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            if "tailsrv-put" in command:
                wait_until(lambda: len(stream.content()) > before)
            elif "--from end" not in command:
                assert select.select([process.stdout], [], [], PATIENCE)[0]
            else:
                wait_until(lambda: any("socket:" in name for name in open_files(process.pid)), "it has a socket")
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_there_are_examples_on_every_page() -> None:
    assert len(PROGRAMS) >= 8
    assert len(COMMANDS) >= 30
