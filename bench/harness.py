"""Start the systems under test, run the measuring tools against them, and learn what a process costs.

Law: a figure comes from a tool that finished; a tool or a server that fails raises, and nothing is measured.
This module knows processes; it does not know what is a good figure (report.py does) nor what is compared
(broadcast.py, collate.py, index.py, clients.py, loops.py do).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

BENCH = Path(__file__).resolve().parent
OUT = BENCH / "out"
COMPILE = ("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread")
READY_SECONDS = 20.0
STOP_SECONDS = 20.0
TOOL_SECONDS = 300.0
COPY_BYTES = 1 << 20

Result = dict[str, float]


class SystemFailedError(Exception):
    """A server or a tool did not do what it was asked to; the message says what, and quotes its last words."""


# ---- the tools in C --------------------------------------------------------------------------------------


def tool(name: str) -> Path:
    """Return the program that bench/c/NAME.c makes, compiled if no program of the same text is there yet."""
    source = BENCH / "c" / f"{name}.c"
    text = source.read_bytes() + (BENCH / "c" / "common.h").read_bytes() + " ".join(COMPILE).encode()
    program = OUT / "bin" / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
            fresh = Path(scratch) / name
            subprocess.run([*COMPILE, "-o", fresh, source], check=True)
            fresh.replace(program)  # in one step: tests compile the same tool at the same time
    return program


def run_tool(name: str, **options: str | float | bool | Path) -> Result:
    """Run a tool with `--option value` for each option (True: the switch alone) and return its figures."""
    command = [str(tool(name))]
    for option, value in options.items():
        if value is True:
            command.append(f"--{option.replace('_', '-')}")
        elif value is not False:
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    if done.returncode:
        raise SystemFailedError(f"{name} exits {done.returncode}: {done.stderr.strip()}")
    return msgspec.json.decode(done.stdout, type=Result)


# ---- the servers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server: its process and the TCP ports that it listens on, in the order it told them."""

    pid: int
    ports: tuple[int, ...]
    ready_seconds: float

    @property
    def port(self) -> int:
        """The first of the ports."""
        return self.ports[0]


def daemon_command(name: str) -> list[str]:
    """Return the command of one of our daemons: the console script beside this interpreter."""
    return [str(Path(sys.executable).with_name(name))]


def free_port() -> int:
    """Return a port that was free a moment ago, for servers that cannot choose their own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(command: Sequence[str | Path], *, port: int | None = None) -> Iterator[Server]:
    """Run a server until the block ends.

    Ours are given `--ready-fd` and tell their addresses. A foreign one is told its `port` by its command, and is
    ready when it accepts there.

    Raises SystemFailedError when it is not ready in READY_SECONDS, or has ended before it was stopped.
    """
    with tempfile.TemporaryFile() as words:
        begin = time.monotonic()
        reader, writer = os.pipe()
        tells = () if port else ("--ready-fd", str(writer))
        process = subprocess.Popen(
            [*command, *tells],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            pass_fds=() if port else (writer,),
            start_new_session=True,  # a Ctrl-C ends the bench, and the bench ends its servers
        )
        os.close(writer)

        try:
            ports = _ready_ports(process, reader, port)
            yield Server(process.pid, ports, time.monotonic() - begin)
            _must_run(process)
        except SystemFailedError as error:
            words.seek(0)
            said = words.read().decode(errors="replace").split("\n")[-4:]
            raise SystemFailedError(f"{error}; {Path(command[0]).name} said last: {chr(10).join(said)}") from error
        finally:
            os.close(reader)
            _stop(process)


def _ready_ports(process: subprocess.Popen[bytes], reader: int, port: int | None) -> tuple[int, ...]:
    ports = (port,) if port and _accepts(port, process) else _told_ports(reader)
    if not ports:
        raise SystemFailedError("the server did not get ready")
    return ports


def _must_run(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise SystemFailedError(f"the server ended by itself, status {process.returncode}")


def _told_ports(reader: int) -> tuple[int, ...]:
    """Read the readiness line; its addresses' ports, or none if the server ended or took too long."""
    line = b""
    deadline = time.monotonic() + READY_SECONDS
    while not line.endswith(b"\n"):
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return ()
        piece = os.read(reader, 4096)
        if not piece:
            return ()
        line += piece
    addresses = msgspec.json.decode(line, type=dict[str, list[str]])["addresses"]
    return tuple(int(address.rpartition(":")[2]) for address in addresses if not address.startswith("unix:"))


def _accepts(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)  # a foreign server has no readiness to wait for
        else:
            return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started: they are a process group of their own."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} did not end on SIGTERM within {STOP_SECONDS:g} s", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):  # the usual case: nobody of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---- what a process costs ----------------------------------------------------------------------------------


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all that it has started, and they."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from descendants(int(child))


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process, its threads and its descendants, also of those that have ended.

    The number of a process's clock is clock_getcpuclockid(3)'s; of its children that have ended it knows ticks alone.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return ended + sum(time.clock_gettime((~process << 3) | 2) for process in descendants(pid))


def anonymous_bytes(pid: int) -> int:
    """Return memory that belongs to the process alone: not the page cache that it maps."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemFailedError(f"process {pid} has no RssAnon in its status: has it ended?")


# ---- files ---------------------------------------------------------------------------------------------------


def fill(path: Path, total: int, message: bytes) -> int:
    """Make a file of about `total` bytes: `message` again and again, whole; return its length."""
    block = message * (COPY_BYTES // len(message))
    with path.open("wb", buffering=0) as file:
        for _ in range(max(1, total // len(block))):
            file.write(block)
        os.fdatasync(file.fileno())  # writing it back must not happen under a measurement
    return path.stat().st_size


def warm(path: Path) -> None:
    """Bring a file into the page cache, whatever the kernel thought of it since."""
    buffer = bytearray(COPY_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def evict(path: Path) -> None:
    """Take a file out of the page cache, as if nobody had read it for a week."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())  # a dirty page cannot be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- systems in turn --------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """The figures of several systems doing the same work: `rounds[system][round]`, and why some have none."""

    rounds: dict[str, list[Result]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def in_turn(
    systems: Mapping[str, Callable[[], Result]], rounds: int, *, may_fail: frozenset[str] = frozenset()
) -> Runs:
    """Measure A B C A B C …, so that whatever drifts on the machine meets all of them alike.

    A system in `may_fail` (somebody else's) that fails is left out from then on, and its failure is reported.
    """
    runs = Runs({name: [] for name in systems})
    for number in range(rounds):
        for name, measure in systems.items():
            if name in runs.failures:
                continue
            if sys.stderr.isatty():
                print(f"\r  round {number + 1}/{rounds}: {name:<40}", end="\r", file=sys.stderr, flush=True)
            try:
                runs.rounds[name].append(measure())
            except SystemFailedError as error:
                if name not in may_fail:
                    raise
                runs.failures[name] = str(error)
                runs.rounds[name] = []
    return runs


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the one lock of all benches on this machine: two of them at once would measure each other."""
    lock = Path(tempfile.gettempdir()) / f"tailsrv-bench-{os.getuid()}.lock"
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def installed(program: str) -> str | None:
    """Return the path of a program that the machine may have (nginx, nc), else None."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
