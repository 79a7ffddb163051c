"""Real daemons as child processes: started, waited for by their readiness descriptor, always stopped."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODULES = {"tailsrv": "tailsrv", "tailsrv-collate": "collator", "tailsrv-index": "indexer"}


class Daemon:
    """One daemon. As a context manager it is killed at the end if it still runs.

    >>> with Daemon("tailsrv", path, "--listen", "127.0.0.1:0") as tailsrv:
    ...     with tailsrv.connect() as client: ...
    """

    def __init__(
        self,
        command: str,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        python: str | Path = sys.executable,
        ready: bool = True,
        **popen: Any,
    ) -> None:
        """Start `command` with an interpreter (behind `prefix`: strace …) and, if `ready`, wait until it listens."""
        read_end, write_end = os.pipe()
        self._ready = read_end
        self.process = subprocess.Popen(
            [*prefix, str(python), "-m", MODULES[command], *map(str, arguments), "--ready-fd", str(write_end)],
            stdout=subprocess.DEVNULL,
            stderr=popen.pop("stderr", subprocess.PIPE),
            pass_fds=(write_end, *popen.pop("pass_fds", ())),
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            **popen,
        )
        os.close(write_end)
        self._log = b""
        self.addresses: list[str] = []
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                self.close()  # no `with` block has it yet
                raise

    # --- readiness and addresses

    def wait_ready(self) -> None:
        """Wait for the line on the readiness descriptor."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._ready], [], [], PATIENCE)[0]:
                raise TimeoutError(f"not ready after {PATIENCE} s: {self.log()}")
            chunk = os.read(self._ready, 4096)
            if not chunk:
                self.process.wait(PATIENCE)
                raise ChildProcessError(f"ended with {self.process.returncode} before it was ready: {self.log()}")
            line += chunk
        self.addresses = json.loads(line)["addresses"]

    def port(self, number: int = 0) -> int:
        """The TCP port of its address with this number."""
        return int(self.addresses[number].rpartition(":")[2])

    def connect(self, number: int = 0) -> socket.socket:
        """A connection to its address with this number."""
        address = self.addresses[number]
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE)
            sock.connect(address.removeprefix("unix:"))
            return sock
        return socket.create_connection(("127.0.0.1", self.port(number)), PATIENCE)

    # --- the log

    def log(self) -> str:
        """What it has written to standard error so far."""
        if self.process.stderr is None or self.process.stderr.closed:  # elsewhere, or read to its end
            return self._log.decode()
        fd = self.process.stderr.fileno()
        while select.select([fd], [], [], 0)[0]:
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                break
            self._log += chunk
        return self._log.decode()

    def events(self) -> list[dict[str, Any]]:
        """Its log as the objects that its lines are."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def wait_log(self, event: str, number: int = 1) -> dict[str, Any]:
        """Wait until it has logged `event` so many times; the last of them."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [entry for entry in self.events() if entry.get("event") == event]
            if len(found) >= number:
                return found[-1]
            assert self.process.stderr is not None
            if (
                self.process.poll() is not None
                or not select.select([self.process.stderr], [], [], max(0.0, deadline - time.monotonic()))[0]
            ):
                raise AssertionError(f"no {event!r} in the log: {self.log()}")

    # --- the process

    @property
    def pid(self) -> int:
        return self.process.pid

    def memory(self) -> int:
        """Its resident set in bytes."""
        return int(self.status("VmRSS").split()[0]) * 1024

    def status(self, field: str) -> str:
        """A field of its /proc status."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == field:
                    return value.strip()
        raise KeyError(field)

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM, and wait; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, if it still runs, and wait."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """Kill the process, read the rest of its log, and close the pipes."""
        self.kill()
        if self.process.stderr is not None and not self.process.stderr.closed:
            self.log()
            self.process.stderr.close()
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
