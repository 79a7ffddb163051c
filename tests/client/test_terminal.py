"""What both commands do about signals."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.support.waits import PATIENCE

PROGRAM = """
import os, signal, time
from tailsrv_client.command_line import Command
from tailsrv_client.terminal import run_command

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100): pass  # the handler runs here, and Python drops what it raises

def run(_values):
    Destroyed()
    time.sleep(60)

run_command(Command("program", usage="", description="", arguments=[]), run)
"""


def test_a_signal_that_arrives_in_a_destructor_ends_the_command_all_the_same() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, timeout=PATIENCE)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == b""
