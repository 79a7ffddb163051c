"""Whatever is wrong with a command line or a file, one line says what to do."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from collator.options import Sync, parse_sync
from tailsrv_formats.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "collator", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--ack-port"),
        (("-p", "0", "--sync", "sometimes"), "interval:MS"),
        (("-p", "0", "--framing", "lines"), "varint"),
        (("-p", "0", "--buffer-bytes", "1"), "64KiB"),
        (("-p", "0", "--allow", "nobody"), "private"),
        (("--ack-listen", "nowhere"), "HOST:PORT"),
        (("-p", "65536"), "65535"),
    ],
)
def test_a_wrong_command_line_exits_2(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    code, said = run(str(tmp_path / "stream"), *arguments)
    assert code == 2
    assert expected in said
    assert not (tmp_path / "stream").exists()


def test_a_path_that_cannot_be_a_stream_exits_1(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "stream"):
        code, said = run(str(path), "--listen", "127.0.0.1:0")
        assert code == 1
        assert str(path) in said


@pytest.mark.parametrize(
    ("text", "sync"),
    [("always", Sync("always")), ("never", Sync("never")), ("interval:250", Sync("interval", 0.25))],
)
def test_sync_policies(text: str, sync: Sync) -> None:
    assert parse_sync(text) == sync


@pytest.mark.parametrize(
    "text", ["", "interval", "interval:", "interval:0", "interval:-5", "interval:1_0", "interval:٣"]
)
def test_an_invalid_sync_policy_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="interval:MS"):
        parse_sync(text)
