"""What an operator relies on in every daemon: exit codes, one line that says what is wrong, small, quiet, alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import MODULES, Daemon
from tests.support.http import scrape
from tests.support.processes import processor_seconds
from tests.support.sockets import read_exactly
from tests.support.waits import PATIENCE, wait_quiet, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMMANDS = tuple(MODULES)
MIB = 1 << 20


def _run(
    command: str,
    *arguments: str | Path,
    prefix: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Exit code and standard error of a daemon that is expected to end by itself."""
    ended = subprocess.run(
        [*prefix, sys.executable, "-m", MODULES[command], *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def _assert_one_line(said: str, *words: str) -> None:
    assert "Traceback" not in said
    lines = said.splitlines()
    complaints = [line for line in lines if not line.startswith("{") or json.loads(line)["level"] == "error"]
    assert len(complaints) == 1, said
    for word in words:
        assert word in complaints[0]


LISTEN = ("--listen", "127.0.0.1:0")

WRONG_LINES = [
    pytest.param((), "FILE", id="no file"),
    pytest.param(("{file}",), "--port", id="no address"),
    pytest.param(("{file}", "--nonsense"), "--nonsense", id="unknown option"),
    pytest.param(("{file}", "--port", "65536"), "65536", id="port out of range"),
    pytest.param(("{file}", "--port", "http"), "http", id="port is no number"),
    pytest.param(("{file}", "--listen", "nonsense"), "HOST:PORT", id="no address form"),
    pytest.param(("{file}", *LISTEN, "--allow", "10.0.0.0/33"), "10.0.0.0/33", id="no network"),
    pytest.param(("{file}", *LISTEN, "--log-level", "loud"), "loud", id="no log level"),
    pytest.param(("{file}", *LISTEN, "--ready-fd", "77"), "77", id="descriptor not open"),
    pytest.param(("{file}", *LISTEN, "--metrics", "9100"), "HOST:PORT", id="no metrics address"),
    pytest.param(("{file}", "{file}", *LISTEN), "argument", id="one argument too many"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("arguments", "word"), WRONG_LINES)
def test_a_wrong_command_line_exits_2_with_one_line(
    tmp_path: Path, command: str, arguments: tuple[str, ...], word: str
) -> None:
    code, said = _run(command, *(argument.format(file=tmp_path / "log") for argument in arguments))
    assert code == 2
    _assert_one_line(said, command, word, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_environment_variable_exits_2_and_is_named(tmp_path: Path, command: str) -> None:
    prefix = command.upper().replace("-", "_")
    code, said = _run(command, tmp_path / "log", environment={f"{prefix}_PORT": "many"})
    assert code == 2
    _assert_one_line(said, "many", "port")


@pytest.mark.needs("ipv6")
@pytest.mark.parametrize("command", COMMANDS)
def test_options_can_be_given_in_the_environment(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").touch()
    variable = f"{command.upper().replace('-', '_')}_LISTEN"
    with Daemon(command, tmp_path / "log", environment={variable: "127.0.0.1:0 [::1]:0"}) as daemon:
        assert [address.rpartition(":")[0] for address in daemon.addresses[:2]] == ["127.0.0.1", "[::1]"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_no_regular_file_exits_1_with_one_line(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        code, said = _run(command, tmp_path / name, *LISTEN)
        assert code == 1
        _assert_one_line(said, str(tmp_path / name), "regular file")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_directory_exits_1_with_one_line(tmp_path: Path, command: str) -> None:
    code, said = _run(command, tmp_path / "missing" / "log", *LISTEN)
    assert code == 1
    _assert_one_line(said, str(tmp_path / "missing"), "No such file or directory")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unreadable_file_exits_1_with_one_line(tmp_path: Path, command: str) -> None:
    file = tmp_path / "log"
    file.write_text("secret\n")
    file.chmod(0)
    # Root may read anything, unless these capabilities are taken from it.
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    code, said = _run(command, file, *LISTEN, prefix=prefix)
    assert code == 1
    _assert_one_line(said, str(file), "Permission denied")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_port_in_use_exits_1_with_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = _run(command, tmp_path / "log", "--listen", address)
    assert code == 1
    _assert_one_line(said, address, "in use")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("address", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_that_is_not_ours_exits_1_with_one_line(tmp_path: Path, command: str, address: str) -> None:
    (tmp_path / "log").touch()
    code, said = _run(command, tmp_path / "log", "--listen", address)
    assert code == 1
    _assert_one_line(said, address)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(tmp_path: Path, command: str, signum: int) -> None:
    (tmp_path / "log").write_text("line\n")
    with Daemon(command, tmp_path / "log", *LISTEN) as daemon, daemon.connect():
        daemon.signal(signum)
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("command", COMMANDS)
def test_version_and_help_go_to_standard_output(command: str) -> None:
    for option, word in (("--version", "1."), ("--help", "--listen")):
        said = subprocess.run(
            [sys.executable, "-m", MODULES[command], option], check=True, capture_output=True, text=True
        )
        assert word in said.stdout
        assert said.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_listening_is_logged_with_every_address(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").touch()
    path = tmp_path / "socket"
    with Daemon(command, tmp_path / "log", *LISTEN, "--listen", f"unix:{path}") as daemon:
        assert daemon.wait_log("listening")["addresses"] == daemon.addresses
        assert daemon.addresses[1] == f"unix:{path}"
        assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.needs("ipv6")
@pytest.mark.parametrize("command", COMMANDS)
def test_port_0_on_all_interfaces_serves_both_families(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").touch()
    with Daemon(command, tmp_path / "log", "--port", "0") as daemon:
        assert daemon.addresses == [f"[::]:{daemon.port()}"]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, daemon.port())).close()


@pytest.mark.parametrize("command", COMMANDS)
def test_sockets_from_systemd_are_used_when_no_address_is_named(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # LISTEN_PID has to be the daemon's own: a shell that becomes the daemon knows it.
        script = 'exec 3<&"$0"; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        prefix = ("bash", "-c", script, str(listener.fileno()))
        with Daemon(command, tmp_path / "log", prefix=prefix, pass_fds=(listener.fileno(),)) as daemon:
            assert daemon.addresses == [f"127.0.0.1:{listener.getsockname()[1]}"]
            daemon.connect().close()


@pytest.mark.parametrize("command", COMMANDS)
def test_systemd_receives_readiness_and_watchdog_notifications(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        with Daemon(command, tmp_path / "log", *LISTEN, environment=environment):
            told: list[bytes] = []
            while told[-3:] != [b"WATCHDOG=1"] * 3 or b"READY=1" not in told:
                told.append(systemd.recv(1000))
    # A loop that turns says so also before the daemon is ready: recovery goes on beside it.
    assert told.count(b"READY=1") == 1
    assert set(told) == {b"READY=1", b"WATCHDOG=1"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_peer_from_outside_is_refused_and_the_log_states_how_to_admit_it(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").write_text("line\n")
    with Daemon(command, tmp_path / "log", *LISTEN, "--allow", "192.0.2.0/24") as daemon:
        with daemon.connect() as peer, contextlib.suppress(ConnectionError):
            assert peer.recv(1) == b""
        assert daemon.wait_log("peer refused")["admit"] == "--allow 127.0.0.1"


@pytest.mark.parametrize("command", COMMANDS)
def test_metrics_and_health_are_served_by_http(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").write_text("line\n")
    with Daemon(command, tmp_path / "log", *LISTEN, "--metrics", "127.0.0.1:0") as daemon:
        host = daemon.wait_log("serving metrics")["addresses"][0].split(":")
        answers = {}
        for path in ("/metrics", "/healthz", "/nonsense"):
            with socket.create_connection((host[0], int(host[1])), PATIENCE) as http:
                http.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                answers[path] = b"".join(iter(lambda http=http: http.recv(65536), b""))  # type: ignore[misc] # mypy can't infer a default
    assert answers["/healthz"].startswith(b"HTTP/1.1 200 ")
    assert answers["/nonsense"].startswith(b"HTTP/1.1 404 ")
    assert answers["/metrics"].startswith(b"HTTP/1.1 200 ")
    assert b"process_open_fds" in answers["/metrics"]
    assert b"\ntailsrv_" in answers["/metrics"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_log_pipe_harms_no_daemon(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").write_text("line\n")
    with Daemon(command, tmp_path / "log", *LISTEN, "--log-level", "debug") as daemon:
        assert daemon.process.stderr is not None
        daemon.process.stderr.close()
        for _ in range(3):
            daemon.connect().close()
        assert daemon.stop() == 0


def test_idle_daemons_never_wake_up(tmp_path: Path) -> None:
    """Ten seconds in which nothing happens to the stream, with peers connected, cost no context switch."""
    file = tmp_path / "log"
    file.write_text("line\n")
    with contextlib.ExitStack() as stack:
        daemons = []
        for command in COMMANDS:
            daemon = stack.enter_context(Daemon(command, file, *LISTEN))
            peer = stack.enter_context(daemon.connect())
            if command != "tailsrv-collate":
                peer.sendall(b"0\n")
                assert peer.recv(1)
            daemons.append(daemon)

        def switches() -> dict[str, int]:
            return {
                command: int(daemon.status("voluntary_ctxt_switches"))
                for command, daemon in zip(COMMANDS, daemons, strict=True)
            }

        wait_quiet(switches, 0.5)
        before = switches()
        time.sleep(10)  # the promise is about time passing
        assert switches() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_64_descriptors_pause_accepting_and_it_resumes(tmp_path: Path, command: str) -> None:
    """Running out of descriptors neither ends the daemon nor makes it spin; who comes later is served later."""
    (tmp_path / "log").write_text("line\n")
    assert shutil.which("prlimit")
    with Daemon(command, tmp_path / "log", *LISTEN, prefix=("prlimit", "--nofile=64:64")) as daemon:
        crowd = [daemon.connect() for _ in range(100)]
        daemon.wait_log("accepting paused")
        spent = processor_seconds(daemon.pid)
        time.sleep(1)  # the promise is about time passing: it does not spin
        assert processor_seconds(daemon.pid) - spent <= 0.2
        for peer in crowd:
            peer.close()
        with daemon.connect() as peer:
            if command == "tailsrv-collate":
                peer.sendall(b"served\n")
                peer.shutdown(socket.SHUT_WR)
                wait_until(lambda: b"served\n" in (tmp_path / "log").read_bytes(), "the line is in the file")
            else:
                peer.sendall(b"0\n")
                assert peer.recv(1)


NO_ROOM = """
import errno, os, runpy, sys
import collator.acked_producer
from tailsrv_runtime.reactor import Reactor

collator.acked_producer.REPLY_SECONDS = 0.2
refused = []

class Epoll:
    def __init__(self, whole):
        self.whole = whole

    def register(self, fd, events):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.whole, name)

register_whole = Reactor.register

def register(self, fd, events, handler, abort=None):
    if abort is not None and not refused:
        refused.append(fd)
        whole, self._epoll = self._epoll, Epoll(self._epoll)
        try:
            register_whole(self, fd, events, handler, abort)
        finally:
            self._epoll = whole
    else:
        register_whole(self, fd, events, handler, abort)

Reactor.register = register
module = sys.argv[3]
sys.argv = sys.argv[3:]
runpy.run_module(module, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "number", "talk", "gauge"),
    [
        pytest.param("tailsrv", 0, (b"0\n", b"line\n"), "tailsrv_clients", id="broadcast"),
        pytest.param("tailsrv-collate", 0, (b"", b""), 'tailsrv_collate_producers{lane="raw"}', id="raw"),
        pytest.param(
            "tailsrv-collate",
            1,
            (b"p\n", b"0 0\n"),
            'tailsrv_collate_producers{lane="acknowledged"}',
            id="acknowledged",
        ),
        pytest.param("tailsrv-index", 0, (b"0\n", b"0\n"), "tailsrv_index_connections", id="index"),
    ],
)
def test_a_connection_that_the_loop_has_no_room_for_is_forgotten_and_the_next_one_is_served(
    tmp_path: Path, command: str, number: int, talk: tuple[bytes, bytes], gauge: str
) -> None:
    """fs.epoll.max_user_watches is used up for a moment. The next connection has the same descriptor."""
    (tmp_path / "log").write_text("line\n" if command != "tailsrv-collate" else "")
    options = [*LISTEN, "--metrics", f"unix:{tmp_path}/http"]
    options += ["--ack-listen", "127.0.0.1:0"] if command == "tailsrv-collate" else []
    with Daemon(command, tmp_path / "log", *options, prefix=(sys.executable, "-c", NO_ROOM)) as daemon:
        # It may be reset before it has seen that it is connected.
        with contextlib.suppress(ConnectionError), daemon.connect(number) as refused:
            assert refused.recv(1) == b""
        assert "max_user_watches" in daemon.wait_log("connection dropped")["advice"]
        with daemon.connect(number) as peer:
            peer.sendall(talk[0])
            assert read_exactly(peer, len(talk[1])) == talk[1]
            time.sleep(0.5)  # longer than the first one would have had for its name
            if command == "tailsrv-collate":
                peer.sendall(b"more\n")
                wait_until(lambda: (tmp_path / "log").read_bytes() == b"more\n", "the message is in the file")
            assert scrape(daemon)[gauge] == 1
        assert daemon.stop() == 0
