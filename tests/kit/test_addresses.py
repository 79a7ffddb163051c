"""Addresses: what users write, what the kernel is asked for, what is printed."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from tailsrv.kit.access import AllowList, admitting
from tailsrv.kit.addresses import Address, Listener, bind, format_address, parse_address
from tailsrv.kit.errors import FatalError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4321", Address(host="127.0.0.1", port=4321)),
        ("fileserver:0", Address(host="fileserver", port=0)),
        ("[::1]:65535", Address(host="::1", port=65535)),
        (":80", Address(host="", port=80)),
        ("unix:/run/log.sock", Address(path="/run/log.sock")),
        ("unix:relative:name", Address(path="relative:name")),
    ],
)
def test_what_is_parsed_is_printed_the_same(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "4321", "host", "host:", "host:65536", "host:-1", "host:1_0", "host:\u0661", "::1:80", "unix:", "host:123456"],
)
def test_what_is_no_address_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)


def test_an_empty_host_listens_for_both_families() -> None:
    (listener,) = bind(Address(port=0))
    try:
        port = listener.socket.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()
        assert listener.address == f"[::]:{port}"
    finally:
        listener.close()


def test_a_peer_that_a_dual_stack_socket_shows_as_mapped_is_named_by_its_own_address() -> None:
    assert format_address(("::ffff:192.0.2.7", 99, 0, 0)) == "192.0.2.7:99"
    assert format_address(("2001:db8::1", 99, 0, 0)) == "[2001:db8::1]:99"


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    (listener,) = bind(Address(host="127.0.0.1"))
    try:
        with pytest.raises(FatalError, match=r"127\.0\.0\.1:\d+: Address already in use; another program"):
            bind(parse_address(listener.address))
    finally:
        listener.close()


def test_a_unix_socket_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    (listener,) = bind(Address(path=str(path)))
    with pytest.raises(FatalError, match="in use"):
        bind(Address(path=str(path)))
    listener.close()
    assert not path.exists()


def test_a_file_where_a_unix_socket_should_be_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(FatalError):
        bind(Address(path=str(path)))
    assert path.read_text() == "data"


def test_a_socket_that_was_handed_over_keeps_its_path(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    Listener(sock).close()
    assert path.exists()


def test_a_path_that_a_successor_has_bound_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (old,) = bind(Address(path=str(path)))
    path.unlink()
    (new,) = bind(Address(path=str(path)))
    old.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    new.close()
    new.close()
    assert not path.exists()


def test_a_forked_process_leaves_the_path_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (listener,) = bind(Address(path=str(path)))
    pid = os.fork()
    if not pid:
        listener.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()
    listener.close()


def test_a_unix_socket_with_a_full_queue_is_alive_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(FatalError, match="in use"):
            bind(Address(path=str(path)))


NOT_OF_THIS_MACHINE = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 0, 0, 0))
OF_THIS_MACHINE = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))


def test_of_a_name_with_several_addresses_those_are_bound_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [NOT_OF_THIS_MACHINE, OF_THIS_MACHINE])
    (listener,) = bind(Address(host="fileserver"))
    assert listener.address.startswith("127.0.0.1:")
    listener.close()


def test_a_family_that_the_machine_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = (socket.AF_IPX, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [unknown, OF_THIS_MACHINE])
    (listener,) = bind(Address(host="localhost"))
    listener.close()


def test_a_name_of_which_the_machine_has_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [NOT_OF_THIS_MACHINE])
    with pytest.raises(FatalError, match="no interface of this machine"):
        bind(Address(host="fileserver"))


def test_all_addresses_of_a_name_get_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    other = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [OF_THIS_MACHINE, other])
    first, second = bind(Address(host="fileserver"))
    assert first.address.rpartition(":")[2] == second.address.rpartition(":")[2]
    first.close()
    second.close()


@pytest.mark.parametrize("peer", ["::ffff:203.0.113.2", "203.0.113.2", "fe80::1%eth0", "2001:db8::5"])
def test_what_is_advised_to_admit_a_peer_admits_it_and_its_neighbour_not(peer: str) -> None:
    assert AllowList((admitting(peer),)).permits(peer)
    assert not AllowList((admitting(peer),)).permits(peer.partition("%")[0] + "1")


@pytest.mark.parametrize(
    ("allowed", "host", "permitted"),
    [
        (("private",), "127.0.0.1", True),
        (("private",), "::1", True),
        (("private",), "::ffff:10.1.2.3", True),
        (("private",), "172.32.0.1", False),
        (("private",), "100.127.255.255", True),
        (("private",), "fe80::1%eth0", True),
        (("private",), "fd00::1", True),
        (("private",), "8.8.8.8", False),
        (("private",), "2001:db8::1", False),
        (("loopback",), "10.0.0.1", False),
        (("any",), "8.8.8.8", True),
        (("any",), "2001:db8::1", True),
        (("192.0.2.0/24", "loopback"), "192.0.2.255", True),
        (("192.0.2.0/24", "loopback"), "192.0.3.0", False),
        (("::ffff:10.0.0.0/104",), "10.1.2.3", True),
        (("::ffff:10.0.0.0/104",), "::ffff:10.1.2.3", True),
        (("::ffff:10.0.0.0/104",), "11.1.2.3", False),
        (("::/0",), "10.1.2.3", False),
    ],
)
def test_who_may_connect(allowed: tuple[str, ...], host: str, permitted: bool) -> None:
    assert AllowList(allowed).permits(host) is permitted


def test_a_network_with_host_bits_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"--allow 10\.0\.0\.1/8"):
        AllowList(("10.0.0.1/8",))
