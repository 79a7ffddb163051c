"""One port carries one stream, for any numbers of workers, addresses and order of starts."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.connections import ask
from tests.support.daemons import Daemon
from tests.support.processes import open_files
from tests.support.sockets import read_to_end
from tests.support.waits import PATIENCE
from tests.tailsrv.support import serve

if TYPE_CHECKING:
    from pathlib import Path

IN_USE = "Address already in use"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    return first, second


def assert_refused(path: Path, *options: str) -> None:
    """A broadcaster with these options exits 1 because its address is in use."""
    with Daemon("tailsrv", path, *options, ready=False) as daemon:
        with pytest.raises(ChildProcessError):
            daemon.wait_ready()
        assert daemon.wait() == 1
        assert IN_USE in daemon.wait_log("failed")["error"]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_a_second_broadcaster_on_a_port_exits_1(files: tuple[Path, Path], before: int, after: int) -> None:
    with serve(files[0], "--workers", str(before)) as daemon:
        address = f"127.0.0.1:{daemon.port()}"
        assert_refused(files[1], "--workers", str(after), "--listen", address)
        for _ in range(20):
            with ask(daemon, b"0 now\n") as client:
                assert read_to_end(client) == b"first"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (":{}", ":{}"),
        (":{}", "127.0.0.1:{}"),
        ("127.0.0.1:{}", ":{}"),
        ("0.0.0.0:{}", "127.0.0.1:{}"),
        ("[::1]:{}", "[::1]:{}"),
        ("[::1]:{}", ":{}"),
        ("127.0.0.1:{}", "localhost:{}"),
        ("localhost:{}", "localhost:{}"),
        ("localhost:{}", ":{}"),
    ],
)
def test_a_second_broadcaster_on_an_overlapping_address_exits_1(
    files: tuple[Path, Path], first: str, second: str
) -> None:
    with Daemon("tailsrv", files[0], "--workers", "2", "--listen", first.format(0)) as daemon:
        assert_refused(files[1], "--workers", "2", "--listen", second.format(daemon.port()))


def test_of_two_broadcasters_that_start_at_the_same_moment_one_serves(files: tuple[Path, Path]) -> None:
    for _ in range(5):
        options = ("--workers", "2", "--listen", f"127.0.0.1:{free_port()}")
        with (
            Daemon("tailsrv", files[0], *options, ready=False) as one,
            Daemon("tailsrv", files[1], *options, ready=False) as other,
        ):
            loser = first_to_end(one, other)
            assert loser.wait() == 1
            winner = other if loser is one else one
            winner.wait_ready()
            data = (files[0] if winner is one else files[1]).read_bytes()
            for _ in range(10):
                with ask(winner, b"0 now\n") as client:
                    assert read_to_end(client) == data


def test_a_successor_can_bind_as_soon_as_its_predecessor_has_ended(files: tuple[Path, Path]) -> None:
    with serve(files[0], "--workers", "3") as daemon:
        port = daemon.port()
        with ask(daemon, b"0\n") as client:  # its connection is in TIME_WAIT, on our side, when the successor binds
            assert client.recv(5) == b"first"
            assert daemon.stop() == 0
    with (
        Daemon("tailsrv", files[1], "--workers", "2", "--listen", f"127.0.0.1:{port}") as daemon,
        ask(daemon, b"0 now\n") as client,
    ):
        assert read_to_end(client) == b"second"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", ":0"])
def test_the_connections_are_distributed_over_all_workers(files: tuple[Path, Path], listen: str) -> None:
    with Daemon("tailsrv", files[0], "--workers", "3", "--listen", listen) as daemon:
        clients = [ask(daemon, b"0\n") for _ in range(120)]
        for client in clients:
            assert client.recv(5) == b"first"
        with open(f"/proc/{daemon.pid}/task/{daemon.pid}/children", encoding="ascii") as file:
            pids = [int(pid) for pid in file.read().split()]
        held = [sum("socket:" in name for name in open_files(pid)) for pid in pids]
        assert len(held) == 3
        assert min(held) > 15, held
        for client in clients:
            client.close()


def first_to_end(*daemons: Daemon) -> Daemon:
    """Wait until one of them has ended."""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for daemon in daemons:
            fd = os.pidfd_open(daemon.pid)
            stack.callback(os.close, fd)
            selector.register(fd, selectors.EVENT_READ, daemon)
        ended = selector.select(PATIENCE)
        assert ended, "both serve"
        found: Daemon = ended[0][0].data
        return found


def free_port() -> int:
    """A port that is free at the moment, for tests that have to know it before the daemon starts."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as probe:
        return int(probe.getsockname()[1])
