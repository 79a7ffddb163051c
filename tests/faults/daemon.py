"""Starts the daemon under test, kills it, and knows where it listens: by its readiness line, port 0, no guessing."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY_SECONDS: Final = 30.0
_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")  # nothing outlives a harness that is killed
ROOT: Final = Path(__file__).resolve().parents[2]

Address = tuple[str, int]


class NotReadyError(Exception):
    """The daemon ended, or stayed silent, before it said that it listens."""


@dataclass(frozen=True)
class Subject:
    """A collator to put under fault: its name in the table and how it is started."""

    name: str
    command: tuple[str, ...]

    def argv(self, file: Path, *, framing: str, sync: str, raw: bool = False) -> list[str]:
        """Compose a command line that listens on one lane alone, on a port of the kernel's choice."""
        lane = "--listen" if raw else "--ack-listen"
        return [*self.command, str(file), "--framing", framing, "--sync", sync, lane, "127.0.0.1:0"]


def control(*bugs: str) -> Subject:
    """Give the harness's own small collator, with planted bugs."""
    planted = tuple(word for bug in bugs for word in ("--bug", bug))
    script = str(Path(__file__).with_name("control.py"))
    return Subject("+".join(("control", *bugs)), (sys.executable, "-S", script, *planted))


def product(bug: str | None = None) -> Subject:
    """Give the real collator, run by the real interpreter (strace counts its calls alone); `bug`: see planted.py."""
    if bug is not None:
        return Subject(f"collator+{bug}", (sys.executable, str(Path(__file__).with_name("planted.py")), bug))
    return Subject("collator", (sys.executable, str(Path(sys.executable).with_name("tailsrv-collate"))))


@dataclass
class Target:
    """Where the producers find the collator at this moment; None while it is down."""

    address: Address | None = None
    changed: threading.Event = field(default_factory=threading.Event)

    def move(self, address: Address | None) -> None:
        """Tell everybody who connects from now on."""
        self.address = address
        self.changed.set()


class Daemon:
    """One life of a daemon: from its start to its end, with its log kept in a file."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        reader, writer = os.pipe()
        command = [*_WITH_PARENT, *wrapper, *argv, "--ready-fd", str(writer)]
        with log.open("ab") as sink:
            self.log_start = sink.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=(writer,),
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )
        os.close(writer)
        self._ready = reader
        self.addresses: list[Address] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_ready(self, timeout: float = READY_SECONDS) -> Address:
        """Wait for the readiness line; the first address that it names. Raises NotReadyError."""
        deadline = time.monotonic() + timeout
        line = b""
        poller = select.poll()  # unlike select(), for descriptors beyond 1,024 too
        poller.register(self._ready, select.POLLIN)
        try:
            while not line.endswith(b"\n"):
                if not poller.poll(1000 * max(0.0, deadline - time.monotonic())):
                    raise NotReadyError(f"not ready within {timeout} s: {self.said()[-2000:]}")
                part = os.read(self._ready, 4096)
                if not part:
                    raise NotReadyError(f"ended before it was ready: {self.said()[-2000:]}")
                line += part
        finally:
            self._close_pipe()
        for address in json.loads(line)["addresses"]:
            host, _, port = str(address).rpartition(":")
            self.addresses.append((host.strip("[]"), int(port)))
        return self.addresses[0]

    def _close_pipe(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def said(self) -> str:
        """Give what it has logged in this life."""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="backslashreplace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; to a process that has ended, none."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL, and wait until the process is gone; gives its exit code."""
        self._close_pipe()
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        return self.process.wait(20)

    def stop(self, timeout: float = 10) -> int | None:
        """SIGTERM, and wait; gives the exit code, or None when it had to be killed after `timeout` seconds."""
        self._close_pipe()
        self.signal(signal.SIGTERM)
        code = self.wait(timeout)
        if code is None:
            self.kill()
        return code

    def wait(self, timeout: float) -> int | None:
        """Wait until it ends by itself; None when it does not in time."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def resident_bytes(self) -> int:
        """Memory that it holds at present (RssAnon: page cache mapped in does not count)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0
