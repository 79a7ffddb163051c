"""`--allow` against real peers of both families on one dual-stack listener."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import MODULES, Daemon
from tests.support.http import scrape
from tests.support.sockets import read_to_end
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs("ipv6")


def talk(daemon: Daemon, source: str, request: bytes) -> bytes:
    """What a peer with this address of the loopback interface gets for its request."""
    target = "::1" if ":" in source else "127.0.0.1"
    answer = b""
    with (
        socket.create_connection((target, daemon.port()), PATIENCE, source_address=(source, 0)) as peer,
        contextlib.suppress(OSError),  # refused: reset, or not even connected any more
    ):
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        answer = read_to_end(peer)
    return answer


@pytest.mark.parametrize(
    ("allowed", "admitted", "refused"),
    [
        (("127.0.0.5",), ("127.0.0.5",), ("127.0.0.6", "::1")),
        (("127.0.0.4/30",), ("127.0.0.4", "127.0.0.7"), ("127.0.0.8", "::1")),
        (("::ffff:127.0.0.5",), ("127.0.0.5",), ("127.0.0.6", "::1")),
        (("::ffff:7f00:5",), ("127.0.0.5",), ("127.0.0.6",)),
        (("::ffff:127.0.0.4/126",), ("127.0.0.4", "127.0.0.7"), ("127.0.0.8", "::1")),
        (("::ffff:0:0/96",), ("127.0.0.1", "127.99.0.1"), ("::1",)),
        (("::1",), ("::1",), ("127.0.0.1",)),
        (("::/0",), ("::1",), ("127.0.0.1",)),
        (("0.0.0.0/0",), ("127.0.0.1",), ("::1",)),
        (("any",), ("127.0.0.1", "::1"), ()),
        (("loopback",), ("127.255.255.254", "::1"), ()),
        (("private",), ("127.0.0.1", "::1"), ()),
        (("192.0.2.0/24", "127.0.0.8/32"), ("127.0.0.8",), ("127.0.0.9", "::1")),
    ],
)
def test_every_form_of_a_network_admits_whom_it_means(
    tmp_path: Path, allowed: tuple[str, ...], admitted: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    (tmp_path / "log").write_text("line\n")
    options = [word for network in allowed for word in ("--allow", network)]
    with Daemon("tailsrv", tmp_path / "log", "--listen", ":0", *options) as daemon:
        for peer in admitted:
            assert talk(daemon, peer, b"0 now\n") == b"line\n"
        for peer in refused:
            assert talk(daemon, peer, b"0 now\n") == b""


@pytest.mark.parametrize("command", MODULES)
@pytest.mark.parametrize("peer", ["127.0.0.5", "::1"])
def test_the_logged_advice_admits_the_refused_peer_and_its_neighbour_not(
    tmp_path: Path, command: str, peer: str
) -> None:
    (tmp_path / "log").write_text("line\n")

    def refusal(*options: str, source: str) -> str | None:
        """What is logged for a peer with this address; nothing if it is let in."""
        with Daemon(command, tmp_path / "log", "-p", "0", "--metrics", f"unix:{tmp_path}/http", *options) as daemon:
            talk(daemon, source, b"0 0\n" if command == "tailsrv" else b"0\n")
            refused = [entry for entry in daemon.events() if entry["event"] == "peer refused"]
            assert len(refused) == 1 - accepted(tmp_path)
            return str(refused[0]["admit"]) if refused else None

    advice = refusal("--allow", "192.0.2.0/24", source=peer)
    assert advice == f"--allow {peer}"
    assert refusal(*advice.split(), source=peer) is None
    if peer == "127.0.0.5":
        assert refusal(*advice.split(), source="127.0.0.6") == "--allow 127.0.0.6"


def accepted(tmp_path: Path) -> int:
    """The number of connections that the daemon has let in, by its metrics."""
    values = scrape(f"unix:{tmp_path}/http")
    return int(sum(value for name, value in values.items() if "_accepted_" in name))
