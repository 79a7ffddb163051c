"""The raw port tells clients of other ports from producers by their first bytes, and loses no producer's message."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from collator.wrongclient import HEADER, HTTP, NAME, may_become, recognise
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.header import HeaderError
from tailsrv_formats.header import parse as parse_header
from tests.support.collators import ACK, Producer, collate, raw, wait_committed
from tests.support.http import scrape
from tests.support.sockets import reset
from tests.support.waits import wait_quiet

if TYPE_CHECKING:
    from pathlib import Path

    from collator.wrongclient import WrongClient

HEADERS = [b"0\n", b"-5\n", b"+7\r\n", b" end \n", b"first\n", b"where\r\n", b"0 now\n", b"12 34\n", b"end now\n"]
NAMES = [b"web-1\r\n", b"\r\n", b"x" * 128 + b"\r\n", b"10.0.0.1:514\r\n"]
HTTPS = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /a?b=c HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n"]
MESSAGES = [
    b"hello\n", b"GET / HTTP/1.1\n", b"web 1\r\n", b"5 6 7\n", b"0\n1\n", b"web-1\r\nmore\n", b"{}\n", b"\n",
    b"x" * 129 + b"\r\n", b"<34>1 - - - - -\n", b"now\n", b"GET /\r\n",
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "expected"),
    [*((one, HEADER) for one in HEADERS), *((one, NAME) for one in NAMES), *((one, HTTP) for one in HTTPS)],
)
def test_a_line_is_recognised_whole_and_may_still_become_one_in_every_part(first: bytes, expected: WrongClient) -> None:
    assert recognise(first) is expected
    line = first[: first.index(b"\n")]
    for cut in range(len(line) + 1):
        assert may_become(line[:cut])
        assert recognise(line[:cut]) is None
    if expected is not HTTP:
        assert recognise(first + b"more\n") is None


@pytest.mark.parametrize("first", MESSAGES)
def test_messages_are_not_taken_for_clients_of_other_ports(first: bytes) -> None:
    assert recognise(first) is None
    assert not may_become(first)


@pytest.mark.parametrize("header", [b"0\n", b"-5\n", b"+7\r\n", b" end \n", b"0 now\n", b"12 34\n", b"\t9 \r\n"])
def test_what_the_broadcaster_takes_for_a_header_is_recognised_as_one(header: bytes) -> None:
    try:
        parse_header(header)
    except HeaderError:
        pytest.fail("the broadcaster does not take it")
    assert recognise(header) is HEADER


def refused(sock: socket.socket) -> bool:
    """Whether the peer resets the connection."""
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("first", [b"0\n", b"web-1\r\n", b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n"])
def test_a_client_of_another_port_sees_a_reset_and_the_stream_nothing(
    tmp_path: Path, framing: str, first: bytes
) -> None:
    path = tmp_path / "stream"
    message = make_framing(framing).wrap(b"fine")
    with collate(path, "--framing", framing) as collator, collator.connect() as sock:
        sock.sendall(first)
        assert refused(sock)
        closed = collator.wait_log("client of another port disconnected")
        assert "--accept-any-message" in closed["advice"]
        assert closed["looks_like"]
        assert closed["wanted"]
        raw(collator, message)
        assert wait_committed(path, len(message)) == message
        assert collator.stop() == 0
    assert path.read_bytes() == message


@pytest.mark.parametrize(
    "parts", [[b"0", b"\n"], [b"web-1", b"\r", b"\n"], [b"GET / HT", b"TP/1.1\r\n"], [b" ", b"end\n"]]
)
def test_a_line_of_another_client_is_recognised_in_pieces(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator, collator.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
            time.sleep(0.05)  # a part each; were they taken together, the test would show less, and not fail
        assert refused(sock)
        assert collator.stop() == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"0\n", b"web-1\r\n", b"end\n", b"0"])
def test_a_line_that_looks_like_a_header_is_a_message_when_its_producer_ends(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        began = time.monotonic()
        raw(collator, line)
        whole = line if line.endswith(b"\n") else line + b"\n"
        assert wait_committed(path, len(whole)) == whole
        assert time.monotonic() - began < 0.9  # it is not held until the time is over
        assert collator.stop() == 0


def test_a_producer_whose_first_message_looks_like_a_header_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator, collator.connect() as sock:
        sock.sendall(b"1\n")
        raw(collator, b"other\n")  # is read after it
        assert wait_committed(path, 6) == b"other\n"
        sock.sendall(b"2\n")
        assert wait_committed(path, 10) == b"other\n1\n2\n"
        sock.sendall(b"3\n")  # is not held: only the first message may be a header
        assert wait_committed(path, 12) == b"other\n1\n2\n3\n"
        assert collator.stop() == 0


def test_a_line_that_is_held_at_sigterm_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator, collator.connect() as sock:
        sock.sendall(b"42\n")
        raw(collator, b"other\n")  # is read after it
        assert wait_committed(path, 6) == b"other\n"
        assert collator.stop() == 0
    assert path.read_bytes() == b"other\n42\n"


def test_an_incomplete_line_is_held_as_long_as_it_likes_and_dropped_by_a_reset(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        patient, gone = collator.connect(), collator.connect()
        patient.sendall(b"12")
        gone.sendall(b"34")
        time.sleep(1.5)  # longer than a whole line is held; the promise is about time passing
        reset(gone)
        assert collator.wait_log("incomplete message dropped")["bytes"] == 2
        patient.sendall(b"34 is no header of anybody\n")
        assert wait_committed(path, 29) == b"1234 is no header of anybody\n"
        patient.close()
        assert collator.stop() == 0


def test_accept_any_message_takes_every_line_for_a_message(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path, "--accept-any-message") as collator, collator.connect() as sock:
        sock.sendall(b"0\n")
        assert wait_committed(path, 2) == b"0\n"
    environment = {"TAILSRV_COLLATE_ACCEPT_ANY_MESSAGE": "1"}
    with collate(path, environment=environment) as collator, collator.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert wait_committed(path, 18) == b"0\nGET / HTTP/1.1\r\n"


def test_clients_of_other_ports_are_counted(tmp_path: Path) -> None:
    with collate(tmp_path / "stream", "--metrics", "127.0.0.1:0") as collator:
        with collator.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert refused(sock)
        assert scrape(collator)['tailsrv_collate_rejected_total{lane="raw",reason="wrong port"}'] == 1


@pytest.mark.parametrize("name", ["web-1\r", "\r"])
def test_the_acknowledged_port_takes_a_name_line_with_a_carriage_return(tmp_path: Path, name: str) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        producer = Producer(collator, name, ACK)
        assert producer.told() == (0, 0)
        producer.send(b"hello\n")
        assert producer.told() == (6, 6)


def test_many_silent_held_clients_never_wake_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        socks = [collator.connect() for _ in range(50)]
        for sock in socks:
            sock.sendall(b"12")
        raw(collator, b"hello\n")
        wait_committed(path, 6)
        wait_quiet(lambda: int(collator.status("voluntary_ctxt_switches")), 0.3)
        before = int(collator.status("voluntary_ctxt_switches"))
        time.sleep(0.5)  # the promise is about time passing
        assert int(collator.status("voluntary_ctxt_switches")) <= before + 2
        for sock in socks:
            sock.close()
        wait_committed(path, 6 + 50 * 3)
        assert collator.stop() == 0
