"""The command line: each error is one line, and the exit code tells a wrong command line from a failed start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LISTEN = ("--listen", "127.0.0.1:0")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tailsrv", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("FILE",),
        ("FILE", *LISTEN, "--no-such-option"),
        ("FILE", "--port", "65536"),
        ("FILE", "--port", "x"),
        ("FILE", "--listen", "nonsense"),
        ("FILE", *LISTEN, "--allow", "10.0.0.1/8"),
        ("FILE", *LISTEN, "--header-timeout", "0"),
        ("FILE", *LISTEN, "--drain", "-1"),
        ("FILE", *LISTEN, "--poll", "0"),
        ("FILE", *LISTEN, "--replay-rate", "0"),
        ("FILE", *LISTEN, "--workers", "0"),
        ("FILE", *LISTEN, "--ready-fd", "99"),
        ("FILE", "another", *LISTEN),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "FILE").touch()
    done = run(*(str(tmp_path / each) if each == "FILE" else each for each in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("tailsrv: ")
    assert done.stderr.count("\n") == 1


def test_a_start_that_fails_exits_with_1_and_one_line_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.mkfifo(tmp_path / "fifo")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases: list[tuple[tuple[str | Path, ...], str]] = [
            ((tmp_path, *LISTEN), "not a regular file"),
            ((tmp_path / "fifo", *LISTEN), "not a regular file"),
            ((tmp_path / "no" / "file", *LISTEN), "directory"),
            ((path, "--listen", f"127.0.0.1:{taken.getsockname()[1]}"), "another program has this port"),
            ((path, "--listen", "192.0.2.1:0"), "no interface of this machine"),
            ((path, "--listen", "no-such-host.invalid:0"), "unknown host"),
            ((path, *LISTEN, "--metrics", f"127.0.0.1:{taken.getsockname()[1]}"), "another program has this port"),
        ]
        for arguments, words in cases:
            done = run(*arguments)
            assert done.returncode == 1, arguments
            failed = [line for line in done.stderr.splitlines() if '"error":' in line]
            assert len(failed) == 1, done.stderr
            assert words in failed[0]
            assert "Traceback" not in done.stderr


def test_a_directory_that_appears_in_place_of_the_file_ends_the_daemon(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tailsrv", str(tmp_path / "file"), *LISTEN], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        while b"listening" not in process.stderr.readline():
            pass
        (tmp_path / "file").mkdir()
        assert process.wait(30) == 1
        assert b"not a regular file" in process.stderr.read()


def test_help_and_version_exit_with_0() -> None:
    assert "Broadcast the growing FILE" in run("--help").stdout
    assert run("--version").stdout.startswith("tailsrv 1.")


def test_every_option_can_come_from_the_environment(tmp_path: Path) -> None:
    done = run(tmp_path, TAILSRV_LISTEN="127.0.0.1:0")
    assert done.returncode == 1
    assert "not a regular file" in done.stderr
    assert run(tmp_path / "file", TAILSRV_PORT="0", TAILSRV_HEADER_TIMEOUT="x").returncode == 2
