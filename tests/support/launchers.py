"""`tailsrv-up` as a child process: started, ready, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import children
from tests.support.sockets import read_exactly
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


COMMAND = (sys.executable, "-m", "compose.up")


AT_ONCE = 8.0
"""Less than the ten seconds of a start that waits, or the thirty of an end."""


class Up:
    """A running `tailsrv-up`."""

    def __init__(self, process: subprocess.Popen[Any], addresses: list[str]) -> None:
        self.process = process
        self.addresses = addresses

    @property
    def ports(self) -> dict[str, int]:
        """The TCP port of each daemon's address, by its role."""
        roles = ("broadcast", "raw", "acknowledged", "index")
        return {role: int(at.rpartition(":")[2]) for role, at in zip(roles, self.addresses, strict=True)}

    def connect(self, number: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.addresses[number].rpartition(":")[2])), PATIENCE)

    def daemons(self) -> list[int]:
        """The process ids of the collator, the indexer and the broadcaster."""
        return children(self.process.pid)

    def assert_passes_a_line_on(self) -> None:
        with self.connect(0) as consumer, self.connect(1) as producer:
            consumer.sendall(b"0\n")
            producer.sendall(b"a line\n")
            assert read_exactly(consumer, 7) == b"a line\n"

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Signal it; its exit code, which it has to return within AT_ONCE seconds."""
        begin = time.monotonic()
        self.process.send_signal(signum)
        try:
            code = self.process.wait(AT_ONCE)
        except subprocess.TimeoutExpired:
            pytest.fail("it does not end:\n" + "\n".join(map(state, (self.process.pid, *self.daemons()))))
        assert time.monotonic() - begin < AT_ONCE
        return code


def state(pid: int) -> str:
    """What a process is, and what its threads wait for."""
    found = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()]
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        lines = (task / "status").read_text().splitlines()
        found += [line for line in lines if line.startswith(("State", "SigPnd", "SigBlk", "SigIgn", "SigCgt"))]
        with contextlib.suppress(OSError):  # only root may see it
            found.append((task / "stack").read_text())
    return "\n".join(found)


@contextlib.contextmanager
def up(file: Path, *options: str, prefix: tuple[str, ...] = (), host: str = "127.0.0.1", **popen: Any) -> Iterator[Up]:
    """Start `tailsrv-up` on free ports, wait until it is ready, and end it and its daemons with the block.

    An empty `host`: on all interfaces, as without the option.
    """
    read_end, write_end = os.pipe()
    command = [*prefix, *COMMAND, str(file), "--base-port", "0", *(("--host", host) if host else ())]
    with subprocess.Popen(
        [*command, "--ready-fd", str(write_end), *options],
        pass_fds=(write_end,),
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **popen},
    ) as process:
        os.close(write_end)
        daemons: list[int] = []
        try:
            with os.fdopen(read_end, "rb") as ready:
                running = Up(process, json.loads(ready.readline() or b'{"addresses": []}')["addresses"])
                assert ready.read() == b""  # nobody else keeps it open
            daemons = running.daemons() if process.poll() is None else []
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            for pid in daemons:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in daemons), "the daemons are gone")
