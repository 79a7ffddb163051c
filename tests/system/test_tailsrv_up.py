"""`tailsrv-up` runs as long as its daemons do, whatever happens to its outputs, and ends when it should."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from compose.up.cli import command
from compose.up.options import Options
from compose.up.passed_options import COMMANDS
from tailsrv_formats.addresses import Address
from tests.support.http import health
from tests.support.launchers import COMMAND, Up, up
from tests.support.outputs import KINDS, output
from tests.support.processes import children, is_running
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import PATIENCE, wait_until

CAPTURED: dict[str, Any] = {"host": "", "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
"""On all interfaces, and the outputs as text."""


def log_lines(running: Up, rounds: int) -> None:
    """Have the broadcaster log 100 lines a round."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(running.connect(0))
            client.sendall(b"0\n")
        for _ in range(rounds):
            os.kill(running.daemons()[2], signal.SIGUSR1)
            with running.connect(0) as client:  # the signal has been dealt with once this is
                client.sendall(b"0 now\n")
                while client.recv(1 << 16):
                    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["stderr", "stdout"])
def test_an_output_that_takes_nothing_harms_nothing(tmp_path: Path, kind: str, which: str) -> None:
    with output(kind) as out:
        streams: dict[str, Any] = {which: out.fd}
        with up(tmp_path / "log", **streams) as running:
            log_lines(running, 20)
            running.assert_passes_a_line_on()
            assert running.end(signal.SIGINT) == 0


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "1>&-", "0<&- 1>&- 2>&-", "1>/dev/full"])
def test_an_output_that_is_closed_or_full_harms_nothing(tmp_path: Path, redirection: str) -> None:
    with up(tmp_path / "log", prefix=("sh", "-c", f'exec "$@" {redirection}', "sh")) as running:
        running.assert_passes_a_line_on()
        assert running.end() == 0


def test_a_reader_that_dies_harms_nothing(tmp_path: Path) -> None:
    """`tailsrv-up FILE 2>&1 | tee log`, and tee is killed."""
    read_end, write_end = os.pipe()
    with up(tmp_path / "log", stdout=write_end, stderr=write_end) as running:
        os.close(write_end)
        os.close(read_end)
        log_lines(running, 3)
        running.assert_passes_a_line_on()
        assert running.end() == 0


def test_a_reader_that_continues_gets_the_banner_the_lines_and_the_number_of_dropped_lines(tmp_path: Path) -> None:
    with (
        output("full pipe") as out,
        output("full pipe") as error,
        up(tmp_path / "log", stdout=out.fd, stderr=error.fd) as running,
    ):
        log_lines(running, 40)
        assert b"Ctrl-C stops all of them." in out.read(until=b"Ctrl-C stops")
        lines = [json.loads(line) for line in error.read(until=b'"log lines dropped"').decode().splitlines()]
        assert (lines[-1]["event"], lines[-1]["daemon"]) == ("log lines dropped", "tailsrv-up")
        assert lines[-1]["count"] > 0
        assert {line["daemon"] for line in lines[:-1]} <= {"tailsrv-collate", "tailsrv-index", "tailsrv"}
        assert all(line["event"] for line in lines)
        assert running.end() == 0


def test_a_second_ctrl_c_kills_what_hangs(tmp_path: Path) -> None:
    with up(tmp_path / "log", stderr=subprocess.PIPE) as running:
        collate, index, tailsrv = running.daemons()
        _hang(collate)
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: _is_pending(collate, signal.SIGTERM), "it has been told")
        assert Path(f"/proc/{index}").exists()  # the writer is first
        assert Path(f"/proc/{tailsrv}").exists()
        assert running.end(signal.SIGINT) == 1
        assert running.process.stderr is not None
        assert b"collate was killed by SIGKILL" in running.process.stderr.read()


def _hang(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _status(pid, "State").startswith("T"), "it has stopped")


def _is_pending(pid: int, signum: int) -> bool:
    return bool(int(_status(pid, "ShdPnd"), 16) >> (signum - 1) & 1)


def _status(pid: int, field: str) -> str:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(line.partition(":")[2].strip() for line in status if line.startswith(f"{field}:"))


def test_a_daemon_that_hangs_does_not_keep_the_others_from_ending(tmp_path: Path) -> None:
    with up(tmp_path / "log") as running:
        collate, index, tailsrv = running.daemons()
        _hang(collate)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _runs(index) and not _runs(tailsrv), "the others have ended")
        assert running.process.poll() is None
        os.kill(collate, signal.SIGCONT)
        assert running.process.wait(PATIENCE) == 0


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_daemons_own_variables_apply_after_the_options_that_the_launcher_passes(tmp_path: Path) -> None:
    wanted = {"TAILSRV_COLLATE_METRICS": f"unix:{tmp_path}/http", "TAILSRV_COLLATE_LISTEN": "198.51.100.1:1"}
    ports = dict.fromkeys(
        ("TAILSRV_PORT", "TAILSRV_COLLATE_PORT", "TAILSRV_COLLATE_ACK_PORT", "TAILSRV_INDEX_PORT"), "0"
    )
    environment = {**os.environ, **wanted, **ports}
    with up(tmp_path / "log", env=environment) as running:
        assert [address.rpartition(":")[0] for address in running.addresses] == ["127.0.0.1"] * 4
        assert health(f"unix:{tmp_path}/http")[0] == 200
        running.assert_passes_a_line_on()
        assert running.end() == 0


def test_options_of_the_daemons_are_passed_to_those_that_have_them(tmp_path: Path) -> None:
    options = ("--workers", "2", "--max-message-bytes", "1K", "--index", str(tmp_path / "elsewhere"), "--poll", "7d")
    with up(tmp_path / "log", *options, stderr=subprocess.PIPE) as running:
        collator, _, broadcaster = running.daemons()
        assert [len(children(pid)) for pid in (collator, broadcaster)] == [0, 2]
        running.assert_passes_a_line_on()
        with running.connect(2) as producer:
            producer.sendall(b"me\n" + b"x" * 2000 + b"\n")
            assert b"error: " in read_to_end(producer)
        assert running.end() == 0
    assert (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "log.index").exists()


def test_every_option_of_the_daemons_is_its_own_or_is_passed() -> None:
    offered = {option.name for option in command.params}
    for daemon in COMMANDS.values():
        assert {option.name for option in daemon.params} - offered <= {"port", "listen", "ack_port", "ack_listen"}


def test_each_daemon_has_an_http_endpoint_of_its_own(tmp_path: Path) -> None:
    with up(tmp_path / "log", "--metrics", f"unix:{tmp_path}/http") as running:
        for daemon in ("tailsrv", "collate", "index"):
            assert health(f"unix:{tmp_path}/http.{daemon}")[0] == 200
        assert running.end() == 0
    ports = Options(file="x", metrics=Address(host="::1", port=9100))
    assert [str(ports.metrics_address(daemon)) for daemon in ("tailsrv", "collate", "index")] == [
        "[::1]:9100",
        "[::1]:9101",
        "[::1]:9102",
    ]
    assert str(Options(file="x", metrics=Address(host="h")).metrics_address("index")) == "h:0"


@pytest.mark.parametrize("number", [0, 3])
def test_a_port_that_is_taken_is_one_line_that_names_the_option(tmp_path: Path, number: int) -> None:
    host = "127.3.2.1"  # of this test alone: the neighbours of the port are free
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        code, said = _fails(tmp_path / "log", "--host", host, "--base-port", str(port - number))
        assert code == 1
        assert f"cannot listen on {host}:{port}: " in said
        assert "--base-port" in said
        assert said.count("\n") == 1
        code, said = _fails(tmp_path / "log", "--metrics", f"{host}:{port}")
        assert (code, said.count("\n")) == (1, 1)
        assert "choose another --metrics" in said


@pytest.mark.parametrize("form", ["auto", "json"])
def test_its_log_is_json_lines_without_a_terminal(tmp_path: Path, form: str) -> None:
    """Also what a daemon says in another form."""
    with up(tmp_path / "log", "--log-format", form, stderr=subprocess.PIPE) as running:
        os.kill(running.daemons()[0], signal.SIGKILL)
        assert running.process.wait(PATIENCE) == 1
        assert running.process.stderr is not None
        lines = [json.loads(line) for line in running.process.stderr]
    assert {line["daemon"] for line in lines} == {"tailsrv-up", "tailsrv-collate", "tailsrv-index", "tailsrv"}
    assert [line["error"] for line in lines if line["level"] == "error"] == ["collate was killed by SIGKILL"]
    code, said = _fails(tmp_path / "log", "--index", str(tmp_path), "--log-format", form)
    assert code == 1
    assert all(json.loads(line) for line in said.splitlines())


def test_a_terminal_gets_text_of_a_hundred_columns_with_levels_in_colour(tmp_path: Path) -> None:
    master, terminal = os.openpty()
    environment = {**{key: os.environ[key] for key in os.environ if key != "NO_COLOR"}, "TERM": "xterm"}
    with up(tmp_path / "log", "--log-file", str(tmp_path / "kept"), stderr=terminal, env=environment) as running:
        os.close(terminal)
        os.kill(running.daemons()[0], signal.SIGKILL)
        said = b""
        with contextlib.suppress(OSError):  # the terminal is closed
            while data := os.read(master, 1 << 16):
                said += data
        assert running.process.wait(PATIENCE) == 1
    os.close(master)
    assert b"\x1b[31m" in said
    lines = click.unstyle(said.decode()).splitlines()
    assert any("listening on 127.0.0.1:" in line for line in lines)
    assert all(len(line) <= 100 or "/" in line for line in lines)
    assert "\x1b" not in (tmp_path / "kept").read_text()


def test_a_closed_terminal_stops_it_cleanly_even_with_two_hang_ups(tmp_path: Path) -> None:
    with up(tmp_path / "log", stderr=subprocess.PIPE) as running:
        running.process.send_signal(signal.SIGHUP)
        assert running.end(signal.SIGHUP) == 0
        assert running.process.stderr is not None
        assert running.process.stderr.read().count(b'"stopped"') == 3


def test_nohup_is_respected(tmp_path: Path) -> None:
    with up(tmp_path / "log", prefix=("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")) as running:
        running.process.send_signal(signal.SIGHUP)
        running.assert_passes_a_line_on()
        assert running.end() == 0


def test_a_full_log_file_is_survived(tmp_path: Path) -> None:
    with up(tmp_path / "log", "--log-file", "/dev/full") as running:
        log_lines(running, 3)
        running.assert_passes_a_line_on()
        assert running.end() == 0


def test_a_log_file_that_is_not_read_is_survived(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with up(tmp_path / "log", "--log-file", str(tmp_path / "fifo")) as running:
        log_lines(running, 40)
        running.assert_passes_a_line_on()
        assert running.end() == 0
    os.close(reader)


def _fails(*options: str | Path, prefix: tuple[str, ...] = (), **popen: Any) -> tuple[int, str]:
    """Exit code and standard error, of the launcher alone."""
    ended = subprocess.run(
        [*prefix, *COMMAND, "--base-port", "0", "--host", "127.0.0.1", *map(str, options)],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        **popen,
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, "".join(line for line in ended.stderr.splitlines(keepends=True) if is_its_own(line))


def is_its_own(line: str) -> bool:
    """Whether a log line is of the launcher, not of one of its daemons."""
    return not line.startswith("{") or json.loads(line)["daemon"] == "tailsrv-up"


def test_a_log_file_that_cannot_be_opened_ends_it_with_one_line(tmp_path: Path) -> None:
    code, said = _fails(tmp_path / "log", "--log-file", tmp_path / "missing" / "log")
    assert code == 1
    path = tmp_path / "missing" / "log"
    assert json.loads(said)["error"] == (
        f"cannot open --log-file {path}: No such file or directory; name a file that can be written"
    )


@pytest.mark.parametrize("descriptor", ["8", "9"])
def test_a_ready_descriptor_that_is_closed_or_for_reading_is_a_wrong_command_line(
    tmp_path: Path, descriptor: str
) -> None:
    code, said = _fails(
        tmp_path / "log", "--ready-fd", descriptor, prefix=("sh", "-c", 'exec "$@" 9</dev/null 8>&-', "sh")
    )
    assert code == 2
    assert said.startswith(f"tailsrv-up: --ready-fd {descriptor}: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", ["no reader", "full pipe"])
def test_a_ready_descriptor_without_a_reader_is_survived(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "log"
    with (
        output(kind) as ready,
        subprocess.Popen(
            [*COMMAND, str(file), "--base-port", "0", "--host", "127.0.0.1", "--ready-fd", str(ready.fd)],
            pass_fds=(ready.fd,),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while "Ctrl-C stops" not in (line := process.stdout.readline()):
                assert line
            while "--ready-fd has no reader" not in (line := process.stderr.readline()):
                assert line
            process.terminate()
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("call", "number", "error"),
    [
        ("fork", 1, errno.EAGAIN),
        ("fork", 2, errno.EAGAIN),
        ("fork", 3, errno.EAGAIN),
        ("pipe", 1, errno.EMFILE),
        ("pipe", 4, errno.EMFILE),
        ("pipe", 6, errno.EMFILE),
    ],
)
def test_a_fork_or_pipe_that_fails_at_the_start_is_one_line(tmp_path: Path, call: str, number: int, error: int) -> None:
    """Whatever of the start the kernel refuses; the daemons that run already are stopped."""
    program = (
        "import os\n"
        f"whole, left = os.{call}, [{number}]\n"
        "def refuse():\n"
        "    left[0] -= 1\n"
        f"    if not left[0]: raise OSError({error}, os.strerror({error}))\n"
        "    return whole()\n"
        f"os.{call} = refuse\n"
        "from compose.up.cli import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log"), "--base-port", "0"],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 1
    complaints = [json.loads(line)["error"] for line in ended.stderr.splitlines() if is_its_own(line)]
    assert len(complaints) == 1
    assert complaints[0].startswith("cannot start ")
    assert "raise " in complaints[0]


def test_systemd_receives_readiness_watchdog_and_stopping_notifications(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with up(tmp_path / "log", env=environment) as running:
            told = {systemd.recv(1000)}
            while len(told) < 2:
                told.add(systemd.recv(1000))
            assert told == {b"READY=1", b"WATCHDOG=1"}
            running.process.terminate()
            while systemd.recv(1000) != b"STOPPING=1":
                pass
            assert running.process.wait(PATIENCE) == 0


def test_a_name_with_two_addresses_is_announced_by_role(tmp_path: Path) -> None:
    with up(tmp_path / "log", "--host", "localhost") as running, running.connect(2) as producer:
        producer.sendall(b"me\n")
        assert read_exactly(producer, 4) == b"0 0\n"


def test_a_start_that_takes_long_is_waited_for(tmp_path: Path) -> None:
    """A collator that waits for disk space, or recovers a large file, is not ended."""
    program = (
        "import sys, signal\n"
        "import compose.up.launcher as launcher, compose.up.children as children, os\n"
        "launcher.READY_SECONDS = 0.2\n"
        "start = children.collator.cli.main\n"
        "def late():\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    start()\n"
        "children.collator.cli.main = late\n"
        "from compose.up.cli import main\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log"), "--base-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        running = Up(process, [])
        try:
            while '"waiting_for":["collate"]' not in (line := process.stderr.readline()):
                assert line
            os.kill(running.daemons()[0], signal.SIGCONT)
            while "Ctrl-C stops" not in (line := process.stdout.readline()):
                assert line
            process.terminate()
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
        finally:
            if process.poll() is None:
                for pid in running.daemons():
                    os.kill(pid, signal.SIGCONT)  # a stopped process would never learn that its launcher is gone
            process.kill()


def test_ctrl_c_stops_all_of_them_and_exits_0(tmp_path: Path) -> None:
    with up(tmp_path / "log", **CAPTURED) as stream:
        daemons = stream.daemons()
        assert len(daemons) == 3
        stream.process.send_signal(signal.SIGINT)
        _, said = stream.process.communicate(timeout=PATIENCE)
        assert stream.process.returncode == 0
    assert "Traceback" not in said
    for pid in daemons:
        assert not is_running(pid)


def test_when_one_dies_the_others_are_stopped_and_the_exit_code_is_not_0(tmp_path: Path) -> None:
    with up(tmp_path / "log", **CAPTURED) as stream:
        os.kill(stream.daemons()[-1], signal.SIGKILL)
        _, said = stream.process.communicate(timeout=PATIENCE)
        assert stream.process.returncode == 1
    assert "was killed by SIGKILL" in said


def test_when_the_launcher_is_killed_its_daemons_end(tmp_path: Path) -> None:
    with up(tmp_path / "log", **CAPTURED) as stream:
        daemons = stream.daemons()
        stream.process.kill()
        stream.process.communicate(timeout=PATIENCE)
        assert len(daemons) == 3
        wait_until(lambda: not any(map(is_running, daemons)), "they are gone")


def test_the_banner_names_every_address_and_commands_to_paste(tmp_path: Path) -> None:
    with up(tmp_path / "log", **CAPTURED) as stream:
        stream.process.send_signal(signal.SIGTERM)
        shown, said = stream.process.communicate(timeout=PATIENCE)
    ports = stream.ports
    for name, role in (
        ("broadcast", "broadcast"),
        ("collate", "raw"),
        ("acknowledged", "acknowledged"),
        ("index", "index"),
    ):
        assert re.search(rf"{name} +\S+:{ports[role]}$", shown, re.MULTILINE)
    assert f"echo 1000 | nc -N localhost {ports['index']} | nc localhost {ports['broadcast']}" in shown
    assert {json.loads(line)["daemon"] for line in said.splitlines()} == {
        "tailsrv-collate",
        "tailsrv-index",
        "tailsrv",
    }


def test_a_line_goes_from_a_producer_to_a_consumer(tmp_path: Path) -> None:
    with (
        up(tmp_path / "log", **CAPTURED) as stream,
        socket.create_connection(("localhost", stream.ports["broadcast"]), PATIENCE) as consumer,
        socket.create_connection(("localhost", stream.ports["raw"]), PATIENCE) as producer,
    ):
        consumer.sendall(b"0\n")
        producer.sendall(b"from end to end\n")
        assert read_exactly(consumer, 16) == b"from end to end\n"


def test_logs_are_shown_and_kept_where_asked(tmp_path: Path) -> None:
    with up(tmp_path / "log", "--log-file", str(tmp_path / "kept"), **CAPTURED) as stream:
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
