"""Addresses: what users write, what the kernel is asked for, what is printed."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tailsrv_formats.addresses import Address, format_address, parse_address
from tailsrv_formats.errors import UsageError
from tailsrv_runtime import listeners as addresses_module
from tailsrv_runtime.access import AllowList, admitting
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import Listener, bind

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


@pytest.mark.needs("ipv6")
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
    assert listener.address.startswith("127.0.0.1:")
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


def test_a_port_that_is_free_on_some_addresses_of_a_name_only_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 means any free port: that one of them is taken elsewhere is no error, and no reason for two ports."""
    other = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [OF_THIS_MACHINE, other])
    with contextlib.ExitStack() as stack:
        bind_tcp = addresses_module._bind_tcp
        tried: list[int] = []

        def taken_at_first(family: int, sockaddr: tuple[Any, ...], **more: Any) -> socket.socket:
            if sockaddr[0] == "127.0.0.2" and len(tried) < 3:
                tried.append(sockaddr[1])
                stack.enter_context(socket.create_server(("127.0.0.2", sockaddr[1])))
            return bind_tcp(family, sockaddr, **more)

        monkeypatch.setattr(addresses_module, "_bind_tcp", taken_at_first)
        first, second = bind(Address(host="fileserver"))
        assert first.address.rpartition(":")[2] == second.address.rpartition(":")[2]
        assert len(tried) == 3
        first.close()
        second.close()


def test_a_chosen_port_that_one_address_of_a_name_does_not_have_free_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.1", "127.0.0.2")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        with pytest.raises(FatalError, match="Address already in use"):
            bind(Address(host="fileserver", port=port))
        monkeypatch.undo()
        (again,) = bind(Address(host="127.0.0.1", port=port))  # nothing is left of the attempt
        again.close()


COMPETE = """
import sys
from tailsrv_runtime.listeners import Address, bind
from tailsrv_runtime.errors import FatalError

kept = []
print("begin", flush=True)
for line in sys.stdin:
    try:
        kept += bind(Address(path=line.strip()))
        print("bound", flush=True)
    except FatalError as error:
        print("in use" if "in use" in str(error) else error, flush=True)
"""


def test_of_many_that_replace_a_stale_socket_at_the_same_moment_one_has_it(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        starts = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", COMPETE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
                )
            )
            for _ in range(4)
        ]
        streams = [(start.stdin, start.stdout) for start in starts]

        def said() -> list[bytes]:
            return sorted(output.readline().strip() for _, output in streams if output is not None)

        assert said() == [b"begin"] * 4
        for number in range(100):
            path = tmp_path / str(number)
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
            for entry, _ in streams:
                assert entry is not None
                entry.write(f"{path}\n".encode())
            assert said() == [b"bound", b"in use", b"in use", b"in use"]


def test_a_directory_that_another_process_has_locked_does_not_delay_the_start(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    begin = time.monotonic()
    (listener,) = bind(Address(path=str(tmp_path / "socket")))
    assert time.monotonic() - begin < 5
    listener.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing/socket", "No such file or directory; create its directory"),
        ("x" * 200, "path too long"),
        ("file/socket", "Not a directory"),
        ("datagram", "Protocol wrong type for socket"),
    ],
)
def test_a_path_that_cannot_be_bound_is_one_line_with_the_reason(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(tmp_path / "datagram"))
        with pytest.raises(FatalError, match=words) as raised:
            bind(Address(path=str(tmp_path / path)))
    assert str(tmp_path / path) in str(raised.value)


def test_a_live_socket_whose_queue_is_full_is_in_use_and_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                client.connect(str(path))
        with pytest.raises(FatalError, match="in use"):
            bind(Address(path=str(path)))
        assert path.exists()


def handed_over(monkeypatch: pytest.MonkeyPatch, sock: socket.socket, count: str = "1") -> dict[str, list[Listener]]:
    """What `inherited_listeners` makes of this socket."""
    monkeypatch.setattr(addresses_module, "FIRST_INHERITED_FD", os.dup(sock.fileno()))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.delenv("LISTEN_FDNAMES", raising=False)
    return addresses_module.inherited_listeners()


def test_a_handed_over_socket_of_a_kind_that_is_not_served_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets:
        packets.bind("")
        packets.listen()
        with pytest.raises(FatalError, match=r"SOCK_SEQPACKET.*ListenStream="):
            handed_over(monkeypatch, packets)


@pytest.mark.parametrize("count", ["", "-1", "\u0663", "9" * 5000, "1e3"])
def test_a_senseless_number_of_handed_over_sockets_is_none(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert handed_over(monkeypatch, sock, count) == {}
    os.close(addresses_module.FIRST_INHERITED_FD)


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
def test_the_allowed_networks_may_connect_and_no_others(allowed: tuple[str, ...], host: str, permitted: bool) -> None:
    assert AllowList(allowed).permits(host) is permitted


def test_a_network_with_host_bits_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"--allow 10\.0\.0\.1/8"):
        AllowList(("10.0.0.1/8",))


V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)


@given(V4, st.integers(0, 32), V4)
def test_a_mapped_network_admits_whom_its_ipv4_network_admits(
    network: ipaddress.IPv4Address, length: int, peer: ipaddress.IPv4Address
) -> None:
    plain = ipaddress.IPv4Network((network, length), strict=False)
    mapped = f"::ffff:{plain.network_address}/{96 + length}"
    for shown in (str(peer), f"::ffff:{peer}"):
        assert AllowList((mapped,)).permits(shown) is AllowList((str(plain),)).permits(shown) is (peer in plain)


@given(st.one_of(V4, V6), st.one_of(V4, V6), st.sampled_from(["", "%eth0", "%lo"]))
def test_the_advice_admits_the_peer_and_no_other(
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    scope: str,
) -> None:
    assume(peer.version == 4 or int(peer) >> 32 != 0xFFFF)  # a mapped one is the IPv4 address
    shown = f"::ffff:{peer}" if peer.version == 4 else f"{peer}{scope}"
    allowed = AllowList((admitting(shown),))
    assert allowed.permits(shown)
    assert allowed.permits(str(other)) is (str(other) == str(peer))


@given(st.text(max_size=30))
def test_whatever_is_written_is_an_address_that_is_printed_the_same_or_is_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert 0 <= address.port <= 65535
    assert parse_address(str(address)) == address


@given(st.text(alphabet="0123456789abcdef.:/%", max_size=24))
def test_whatever_is_written_is_a_network_or_is_refused(text: str) -> None:
    try:
        AllowList((text,)).permits("127.0.0.1")
    except UsageError as error:
        assert f"--allow {text}" in str(error)  # noqa: PT017 - most texts are none
