"""systemd learns of each change of state, however slow its socket is; and nothing of it ends or delays a daemon."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime.notifier import Notifier
from tests.support.daemons import MODULES, Daemon
from tests.support.processes import processor_seconds
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tailsrv_runtime.reactor import Reactor


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield systemd


def fill(path: str) -> int:
    """Datagrams until the socket takes no more; how many."""
    count = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
        other.setblocking(False)
        other.connect(path)
        while True:
            other.send(b"#")
            count += 1
    return count


def rounds(reactor: Reactor, seconds: float) -> int:
    """How often the loop wakes up in a while."""
    count = 0

    def wake() -> None:
        nonlocal count
        count += 1

    reactor.after_round(wake)
    reactor.call_later(seconds, reactor.stop)
    reactor.run()
    return count


def test_a_full_socket_gets_the_state_when_there_is_room(systemd: socket.socket, reactor: Reactor) -> None:
    count = fill(systemd.getsockname())
    notifier = Notifier(reactor)
    notifier.send("READY=1", until_taken=True)
    notifier.send("WATCHDOG=1")
    notifier.send("STOPPING=1", until_taken=True)
    assert rounds(reactor, 0.1) <= 2  # it does not spin meanwhile
    assert [systemd.recv(100) for _ in range(count)] == [b"#"] * count
    reactor.call_later(0.1, reactor.stop)
    reactor.run()
    assert [systemd.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]
    notifier.close()


def test_a_socket_that_is_gone_is_nothing_and_one_that_comes_back_is_found(
    systemd: socket.socket, reactor: Reactor
) -> None:
    path = systemd.getsockname()
    notifier = Notifier(reactor)
    notifier.send("READY=1", until_taken=True)
    assert systemd.recv(100) == b"READY=1"
    fill(path)
    notifier.send("STATUS=waits", until_taken=True)
    systemd.close()
    os.unlink(path)
    assert rounds(reactor, 0.1) <= 3
    notifier.send("STATUS=lost", until_taken=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(path)
        again.settimeout(PATIENCE)
        notifier.send("STOPPING=1", until_taken=True)
        assert again.recv(100) == b"STOPPING=1"
    notifier.close()


@pytest.mark.parametrize("path", ["", "missing", "x" * 200, "@" + "x" * 200, "vsock:2:1"])
def test_a_notify_address_that_leads_nowhere_is_ignored(
    monkeypatch: pytest.MonkeyPatch, reactor: Reactor, path: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notifier = Notifier(reactor)
    notifier.send("READY=1", until_taken=True)
    assert reactor._timeout() == -1  # it is not tried again
    notifier.close()


@pytest.mark.parametrize("command", MODULES)
def test_a_daemon_serves_and_ends_while_systemd_does_not_read(tmp_path: Path, command: str) -> None:
    (tmp_path / "log").write_text("line\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        count = fill(systemd.getsockname())
        environment = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "20000"}
        with Daemon(command, tmp_path / "log", "--listen", "127.0.0.1:0", environment=environment) as daemon:
            daemon.connect().close()
            for _ in range(count):
                assert systemd.recv(100) == b"#"
            assert systemd.recv(100) == b"READY=1"
            assert systemd.recv(100) == b"WATCHDOG=1"
            assert daemon.stop() == 0


@pytest.mark.parametrize("interval", ["0", "²", "-5", "1e6", "", "9" * 400])
def test_an_invalid_watchdog_interval_is_ignored(tmp_path: Path, interval: str) -> None:
    (tmp_path / "log").write_text("line\n")
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": interval}
    with Daemon("tailsrv", tmp_path / "log", "--listen", "127.0.0.1:0", environment=environment) as daemon:
        before = processor_seconds(daemon.pid)
        time.sleep(0.3)  # the promise is about time passing: it does not spin
        assert processor_seconds(daemon.pid) - before < 0.2
        assert daemon.stop() == 0


@pytest.mark.parametrize("count", [8, 13, 16, 18, 20])
@pytest.mark.parametrize("command", MODULES)
def test_a_start_without_descriptors_is_one_line_with_advice(tmp_path: Path, command: str, count: int) -> None:
    (tmp_path / "log").write_text("line\n")
    with Daemon(
        command,
        tmp_path / "log",
        *("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
        prefix=("prlimit", f"--nofile={count}:{count}"),
        ready=False,
    ) as daemon:
        try:
            daemon.wait_ready()
        except ChildProcessError:
            assert daemon.wait() == 1
            (failed,) = [event for event in daemon.events() if event["level"] == "error"]
            assert "raise " in failed.get("advice", failed["error"])
        else:
            assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
