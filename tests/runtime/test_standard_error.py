"""Whatever standard error is, daemons start, serve and end as ever, and who reads on knows what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.daemons import MODULES, Daemon
from tests.support.outputs import KINDS, output
from tests.support.sockets import read_exactly
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from pathlib import Path

LISTEN = ("--listen", "127.0.0.1:0")
FORMS = {**dict.fromkeys(MODULES, ()), "workers": ("--workers", "2")}
AT_ONCE = 5.0
"""Far less than a time limit of a daemon, far more than its end takes on a busy machine."""

MIB = 1 << 20


def start(form: str, file: Path, *options: str, **settings: Any) -> Daemon:
    command = "tailsrv" if form == "workers" else form
    return Daemon(command, file, *LISTEN, *FORMS[form], *options, **settings)


def assert_serves(daemon: Daemon, form: str, file: Path) -> None:
    with daemon.connect() as peer:
        if form == "tailsrv-collate":
            size = file.stat().st_size
            peer.sendall(b"served\n")
            wait_until(lambda: file.stat().st_size >= size + 7, "the line is in the file")
        else:
            peer.sendall(b"0\n")
            assert peer.recv(1)


def assert_ends_at_once(daemon: Daemon, signum: int = signal.SIGTERM) -> None:
    begin = time.monotonic()
    daemon.signal(signum)
    assert daemon.wait() == 0
    assert time.monotonic() - begin < AT_ONCE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "log"
    file.write_text("line\n")
    return file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_standard_error_that_takes_nothing_harms_nothing(file: Path, form: str, kind: str) -> None:
    with output(kind) as error, start(form, file, stderr=error.fd) as daemon:
        assert_serves(daemon, form, file)
        assert_ends_at_once(daemon, signal.SIGINT if kind == "stopped terminal" else signal.SIGTERM)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "0<&- 1>&- 2>&-", "1>&-", "2</dev/null"])
def test_a_standard_error_that_is_closed_or_full_harms_nothing(file: Path, form: str, redirection: str) -> None:
    with start(form, file, prefix=("sh", "-c", f'exec "$@" {redirection}', "sh")) as daemon:
        assert_serves(daemon, form, file)
        for number in (0, 1, 2):
            assert not os.readlink(f"/proc/{daemon.pid}/fd/{number}").startswith(("socket:", "anon_inode:"))
        assert_ends_at_once(daemon)


@pytest.mark.parametrize("kind", ["full pipe", "stopped terminal", "full socket"])
@pytest.mark.parametrize("form", FORMS)
def test_a_reader_that_continues_gets_the_lines_that_waited(file: Path, form: str, kind: str) -> None:
    """Without another event; each of them whole."""
    with output(kind) as error, start(form, file, "--log-format", "json", stderr=error.fd):
        lines = error.read(until=b'"listening"').splitlines()
    assert "listening" in [json.loads(line)["event"] for line in lines if line.endswith(b"}")]


@pytest.mark.parametrize("kind", ["full pipe", "full socket"])
@pytest.mark.parametrize("form", ["tailsrv", "tailsrv-index"])
def test_what_is_dropped_is_counted_and_the_count_comes_when_the_reader_reads_on(
    tmp_path: Path, form: str, kind: str
) -> None:
    """Memory is bounded meanwhile; no line is torn."""
    folder = tmp_path.joinpath(*(["\x01" * 200] * 14))  # a path that fills the log: each byte is five there
    folder.mkdir(parents=True)
    file = folder / "log"
    file.write_text("line\n")
    with output(kind) as error, start(form, file, "--log-format", "json", stderr=error.fd) as daemon:
        memory = daemon.memory()
        for _ in range(100):
            for content in ("", "line\n"):
                file.write_text(content)
                with daemon.connect() as peer:  # its question makes the daemon look at the file
                    peer.sendall(b"0 now\n" if form == "tailsrv" else b"0\n")
                    answer = peer.recv(100)
                    assert answer == content.encode() or form == "tailsrv-index"
        assert daemon.memory() - memory < 4 * MIB
        found = [json.loads(line) for line in error.read(until=b'"log lines dropped"').splitlines()]
        counts = [each["count"] for each in found if each["event"] == "log lines dropped"]
        assert len(counts) == 1
        assert counts[0] > 50
        assert_ends_at_once(daemon)


def test_sigusr1_describes_every_client_to_a_slow_reader(file: Path) -> None:
    """More lines than pipe and buffer hold together, and none is dropped: the pace is the reader's."""
    clients = 300
    with contextlib.ExitStack() as stack, output("full pipe") as error:
        daemon = stack.enter_context(start("tailsrv", file, "--log-format", "json", stderr=error.fd))
        peers = set()
        for _ in range(clients):
            peer = stack.enter_context(daemon.connect())
            peer.sendall(b"0\n")
            assert read_exactly(peer, 5) == b"line\n"
            peers.add("{}:{}".format(*peer.getsockname()))
        described: set[str] = set()
        for _ in range(20):
            daemon.signal(signal.SIGUSR1)
        with file.open("a") as stream:
            stream.write("more\n")
        assert read_exactly(peer, 5) == b"more\n"
        while described != peers:
            for line in error.read(until=b"}\n").splitlines():
                entry = json.loads(line)
                assert entry["event"] != "log lines dropped"
                if entry["event"] == "client":
                    described.add(entry["peer"])
        assert_ends_at_once(daemon)


def test_a_background_daemon_is_not_stopped_by_a_terminal_that_stops_background_writers(file: Path) -> None:
    """`stty tostop`: SIGTTOU would stop it at its first log line."""
    script = (
        "import os, pty, sys, termios, time, fcntl, subprocess\n"
        "pid, master = pty.fork()\n"
        "if pid == 0:\n"
        "    new = termios.tcgetattr(0); new[3] |= termios.TOSTOP; termios.tcsetattr(0, termios.TCSANOW, new)\n"
        "    child = subprocess.Popen(sys.argv[2:], process_group=0, pass_fds=(int(sys.argv[1]),))\n"
        "    sys.exit(child.wait())\n"
        "os.close(int(sys.argv[1]))\n"
        "try:\n"
        "    while os.read(master, 4096): pass\n"
        "except OSError: pass\n"
    )
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "tailsrv", str(file), *LISTEN, "--ready-fd", str(write_end)]
    with subprocess.Popen([sys.executable, "-c", script, str(write_end), *command], pass_fds=(write_end,)) as terminal:
        os.close(write_end)
        try:
            with os.fdopen(read_end, "rb") as ready:
                assert select.select([ready], [], [], PATIENCE)[0], "it has been stopped"
                assert ready.readline().startswith(b"{")
        finally:
            terminal.kill()


@pytest.mark.parametrize("command", [*MODULES.values(), "compose.up", "compose.check"])
@pytest.mark.parametrize("kind", ["full pipe", "no reader", "stopped terminal", "full socket"])
def test_a_wrong_command_line_exits_2_even_if_its_error_cannot_be_written(command: str, kind: str) -> None:
    with output(kind) as error:
        ended = subprocess.run(
            [sys.executable, "-m", command, "--nonsense"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error.fd,
            timeout=PATIENCE,
        )
    assert ended.returncode == 2
    assert ended.stdout == b""


@pytest.mark.parametrize("command", [*MODULES.values(), "compose.up", "compose.check"])
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "0<&- 1>&- 2>&-"])
def test_help_and_complaints_survive_closed_descriptors(command: str, redirection: str) -> None:
    for option, code in (("--help", 0), ("--version", 0), ("--nonsense", 2)):
        ended = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", command, option],
            check=False,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == code
        assert (ended.stdout == b"") == (option == "--nonsense" or "1>&-" in redirection)
        assert ended.stderr == b""


@pytest.mark.parametrize("command", [*MODULES.values(), "compose.up", "compose.check"])
def test_help_that_cannot_be_written_is_one_line(command: str) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", command, "--help"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
    assert ended.returncode == 1
    assert ended.stderr.decode().count("\n") == 1
    assert b"No space left on device" in ended.stderr


def test_a_socket_path_that_is_no_text_is_logged_and_announced(file: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/socket-\xff"
    with Daemon("tailsrv", file, "--listen", os.fsdecode(b"unix:" + path)) as daemon:
        assert os.fsencode(daemon.addresses[0]) == b"unix:" + path
        assert "\\udcff" in daemon.wait_log("listening")["addresses"][0]
        assert_ends_at_once(daemon)


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
    ],
)
def test_a_terminal_gets_lines_in_colour_unless_it_does_not_want_them(
    file: Path, environment: dict[str, str], coloured: bool
) -> None:
    master, terminal = os.openpty()
    plain = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "tailsrv", str(file), *LISTEN],
        stdin=subprocess.DEVNULL,
        stderr=terminal,
        env={**plain, **environment},
    )
    os.close(terminal)
    try:
        said = b""
        while b"listening on 127.0.0.1:" not in said:
            assert select.select([master], [], [], PATIENCE)[0]
            said += os.read(master, 1 << 16)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        os.close(master)
    assert (b"\x1b[" in said) == coloured
    assert all(len(line) <= 100 for line in said.decode().splitlines() if "\x1b[" not in line)
