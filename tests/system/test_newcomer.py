"""What a newcomer types: tailsrv-up, the README's sixty seconds with netcat, make demo."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.support.processes import children, is_running
from tests.support.sockets import read_exactly
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


class Up:
    """A running `tailsrv-up`."""

    def __init__(self, process: subprocess.Popen[str], addresses: list[str]) -> None:
        self.process = process
        self.broadcast, self.collate, self.acknowledged, self.index = (
            int(address.rpartition(":")[2]) for address in addresses
        )

    def daemons(self) -> list[int]:
        """The process numbers of its daemons."""
        return children(self.process.pid)


@contextlib.contextmanager
def up(file: Path, *options: str) -> Iterator[Up]:
    """`tailsrv-up` on free ports, ready."""
    read_end, write_end = os.pipe()
    command = [
        sys.executable,
        "-m",
        "compose.up",
        str(file),
        "--base-port",
        "0",
        "--ready-fd",
        str(write_end),
        *options,
    ]
    with subprocess.Popen(
        command, pass_fds=(write_end,), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(write_end)
        try:
            with os.fdopen(read_end, "rb") as ready:
                yield Up(process, msgspec.json.decode(ready.readline())["addresses"])
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=PATIENCE)


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
    with up(file, "--sync", "never") as stream:
        ports = {"4321": stream.broadcast, "4322": stream.collate, "4323": stream.acknowledged, "4324": stream.index}

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


def test_ctrl_c_stops_all_of_them_and_exits_0(tmp_path: Path) -> None:
    with up(tmp_path / "log") as stream:
        daemons = stream.daemons()
        assert len(daemons) == 3
        stream.process.send_signal(signal.SIGINT)
        _, said = stream.process.communicate(timeout=PATIENCE)
        assert stream.process.returncode == 0
    assert "Traceback" not in said
    for pid in daemons:
        assert not is_running(pid)


def test_when_one_dies_the_others_are_stopped_and_the_exit_code_is_not_0(tmp_path: Path) -> None:
    with up(tmp_path / "log") as stream:
        os.kill(stream.daemons()[-1], signal.SIGKILL)
        _, said = stream.process.communicate(timeout=PATIENCE)
        assert stream.process.returncode == 1
    assert "was killed by SIGKILL" in said


def test_when_the_launcher_is_killed_its_daemons_end(tmp_path: Path) -> None:
    with up(tmp_path / "log") as stream:
        daemons = stream.daemons()
        stream.process.kill()
        stream.process.communicate(timeout=PATIENCE)
        assert len(daemons) == 3
        wait_until(lambda: not any(map(is_running, daemons)), "they are gone")


def test_the_table_names_every_address_and_commands_to_paste(tmp_path: Path) -> None:
    with up(tmp_path / "log") as stream:
        stream.process.send_signal(signal.SIGTERM)
        shown, said = stream.process.communicate(timeout=PATIENCE)
    for name, port in (
        ("broadcast", stream.broadcast),
        ("collate", stream.collate),
        ("acknowledged", stream.acknowledged),
        ("index", stream.index),
    ):
        assert re.search(rf"{name} +\S+:{port}$", shown, re.MULTILINE)
    assert f"echo 1000 | nc -N localhost {stream.index} | nc localhost {stream.broadcast}" in shown
    assert {msgspec.json.decode(line)["daemon"] for line in said.splitlines()} == {
        "tailsrv-collate",
        "tailsrv-index",
        "tailsrv",
    }


def test_a_line_goes_from_a_producer_to_a_consumer(tmp_path: Path) -> None:
    with (
        up(tmp_path / "log") as stream,
        socket.create_connection(("localhost", stream.broadcast), PATIENCE) as consumer,
        socket.create_connection(("localhost", stream.collate), PATIENCE) as producer,
    ):
        consumer.sendall(b"0\n")
        producer.sendall(b"from end to end\n")
        assert read_exactly(consumer, 16) == b"from end to end\n"


def test_logs_are_shown_and_kept_where_asked(tmp_path: Path) -> None:
    with up(tmp_path / "log", "--log-file", str(tmp_path / "kept")) as stream:
        stream.process.send_signal(signal.SIGTERM)
        _, said = stream.process.communicate(timeout=PATIENCE)
    assert (tmp_path / "kept").read_text() == said


@pytest.mark.parametrize("options", [("--base-port", "65533"), ("--framing", "morse"), ("--allow", "nobody")])
def test_a_wrong_command_line_exits_2_with_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "compose.up", str(tmp_path / "log"), *options],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert options[1] in ended.stderr


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


def test_where_there_is_no_nc_make_demo_says_so_and_prints_commands_that_work(tmp_path: Path) -> None:
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
