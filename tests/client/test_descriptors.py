"""The clients' commands survive closed descriptors: no socket gets the number of an output."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import Daemon
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("redirection", "code"), [("2>&-", 0), ("0<&- 2>&-", 0), ("1>&-", 1), ("0<&- 1>&- 2>&-", 1)])
def test_cat_with_closed_descriptors_writes_the_bytes_or_fails(tmp_path: Path, redirection: str, code: int) -> None:
    """With standard output closed, the connection would be number 1, and would be sent what it had received."""
    file = tmp_path / "log"
    file.write_text("line\n" * 1000)
    with Daemon("tailsrv", file, "--listen", "127.0.0.1:0") as daemon:
        command = (sys.executable, "-m", "tailsrv_client.cat", "--from", "start", "--until", "now", daemon.addresses[0])
        ended = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
            check=False,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == code, ended.stderr
        assert ended.stdout == (file.read_bytes() if code == 0 else b"")
