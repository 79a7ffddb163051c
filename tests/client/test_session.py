"""Promises of the acknowledged lane's producer side: what is sent, told, and refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailsrv_client.errors import ProducerDiverged, ProducerRefused
from tailsrv_client.protocol.outbox import Memory, Outbox
from tailsrv_client.protocol.session import Session
from tailsrv_client.spool import Spool
from tailsrv_client.spoolfile import encode_record
from tailsrv_formats.errors import UsageError
from tailsrv_formats.framing import make_framing


class Waiter:
    """Who waits."""

    def __init__(self) -> None:
        self.result: list[int | None] = []
        self.error: Exception | None = None

    def done(self) -> bool:
        return bool(self.result)

    def set_result(self, offset: int | None, /) -> None:
        self.result.append(offset)

    def set_exception(self, error: Exception, /) -> None:
        self.error = error


def session_with(*messages: bytes, name: str = "n") -> tuple[Session, Outbox, list[Waiter]]:
    outbox = Outbox(Memory())
    waiters = [Waiter() for _ in messages]
    for message, waiter in zip(messages, waiters, strict=True):
        outbox.put(message, waiter)
    return Session(name, outbox), outbox, waiters


def receive(session: Session, outbox: Outbox, line: bytes) -> None:
    for acked in session.received(line):
        outbox.acknowledge(acked)
    outbox.tidy()


def send_all(session: Session) -> bytes:
    sent = b""
    while session.has_more:
        data = bytes(session.outgoing(7))
        session.was_sent(len(data))
        sent += data
    return sent


def test_it_says_its_name_and_sends_nothing_before_it_is_told_where_to_go_on() -> None:
    session, outbox, _ = session_with(b"one\n")
    assert session.opening() == b"n\r\n"
    assert not session.has_more
    receive(session, outbox, b"500 90")
    assert not session.has_more
    receive(session, outbox, b"00\n")
    assert send_all(session) == b"one\n"


def test_each_message_hears_where_it_stands() -> None:
    session, outbox, waiters = session_with(b"one\n", b"two\n", b"three\n")
    session.opening()
    receive(session, outbox, b"500 9000\n")
    send_all(session)
    receive(session, outbox, b"508 9108\r\n")
    assert [waiter.result for waiter in waiters] == [[9100], [9104], []]
    receive(session, outbox, b"514 9200\n514 9200\n")
    assert waiters[2].result == [9194]
    assert outbox.unacknowledged_bytes == 0
    assert session.complete


def test_after_a_lost_line_only_the_last_message_knows_where_it_stands() -> None:
    session, outbox, waiters = session_with(b"one\n", b"two\n", b"three\n")
    session.opening()
    receive(session, outbox, b"0 0\n")
    send_all(session)
    session.opening()
    receive(session, outbox, b"8 1008\n")
    assert [waiter.result for waiter in waiters] == [[None], [1004], []]
    assert send_all(session) == b"three\n"


def test_an_anonymous_one_sends_again_what_was_not_acknowledged() -> None:
    session, outbox, waiters = session_with(b"one\n", b"two\n", name="")
    assert session.opening() == b"\r\n"
    receive(session, outbox, b"0 0\n")
    send_all(session)
    receive(session, outbox, b"4 4\n")
    session.opening()
    receive(session, outbox, b"0 0\n")
    assert send_all(session) == b"two\n"
    receive(session, outbox, b"4 12\n")
    assert waiters[1].result == [8]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"99 99\n", id="beyond what was ever sent: another producer has the name"),
        pytest.param(b"2 2\n", id="within a message"),
        pytest.param(b"5 5\n", id="within the next message"),
    ],
)
def test_it_goes_on_nowhere_but_at_a_boundary_of_what_it_has(line: bytes) -> None:
    session, outbox, _ = session_with(b"one\n", b"two\n")
    session.opening()
    receive(session, outbox, b"0 0\n")
    send_all(session)
    session.opening()
    with pytest.raises(ProducerDiverged):
        receive(session, outbox, line)


def test_a_collator_that_forgot_what_it_acknowledged_is_noticed() -> None:
    session, outbox, _ = session_with(b"one\n", b"two\n")
    session.opening()
    receive(session, outbox, b"0 0\n")
    send_all(session)
    receive(session, outbox, b"8 8\n")
    session.opening()
    with pytest.raises(ProducerDiverged, match="its file is not the one it was"):
        receive(session, outbox, b"4 4\n")


@pytest.mark.parametrize("line", [b"3 3\n", b"9 9\n"])
def test_an_acknowledgement_of_what_was_not_sent_is_refused(line: bytes) -> None:
    session, outbox, _ = session_with(b"one\n", b"two\n")
    session.opening()
    receive(session, outbox, b"0 0\n")
    session.was_sent(4)
    receive(session, outbox, b"4 4\n")
    with pytest.raises(ProducerDiverged):
        receive(session, outbox, line)


@pytest.mark.parametrize("line", [b"error: too long\n", b"HTTP/1.1 400\n", b"1\n", b"+1 2\n", b"1_0 2\n", b"x" * 5000])
def test_anything_else_than_a_line_of_the_lane_is_an_error_in_its_own_words(line: bytes) -> None:
    session, outbox, _ = session_with(b"one\n")
    session.opening()
    with pytest.raises(ProducerRefused):
        receive(session, outbox, line)


@pytest.mark.parametrize("name", ["a b", "é", "x" * 129, "a/b", "a\n"])
def test_a_name_that_the_lane_does_not_allow_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        Session(name, Outbox(Memory()))


class Collator:
    """The other side, as PROTOCOLS says it: whole messages of a name, once; lines may be lost with connections."""

    def __init__(self) -> None:
        self.file = b""
        self.acked = 0
        self.at = 0
        self.unacknowledged_bytes = b""

    def connect(self) -> bytes:
        self.unacknowledged_bytes = b""
        return b"%d %d\n" % (self.acked, self.at)

    def receive(self, data: bytes) -> None:
        self.unacknowledged_bytes += data

    def commit(self, other: bytes) -> bytes:
        whole = self.unacknowledged_bytes.rfind(b"\n") + 1
        if not whole:
            return b""
        self.file += other + self.unacknowledged_bytes[:whole]
        self.unacknowledged_bytes = self.unacknowledged_bytes[whole:]
        self.acked += whole
        self.at = len(self.file)
        return b"%d %d\n" % (self.acked, self.at)


STEPS = st.lists(st.sampled_from(["put", "send", "commit", "deaf commit", "cut", "restart"]), max_size=60)


@settings(max_examples=60)
@given(STEPS, st.integers(0, 999))
def test_whatever_breaks_every_message_stands_once_in_order_and_where_its_receipt_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int
) -> None:
    """With a spool, also across the death of the producer."""
    path = str(tmp_path_factory.mktemp("spool") / "spool")
    framing = make_framing("newline")
    collator = Collator()
    spool = Spool(path, "n", framing)
    outbox, put = Outbox(spool), 0
    session = Session("n", outbox)
    session.opening()
    receive(session, outbox, collator.connect())
    waiters: list[tuple[bytes, Waiter]] = []
    for turn, step in enumerate([*steps, "cut", *["send", "commit"] * 20]):
        match step:
            case "put":
                message, waiter = b"%d %s\n" % (put, b"x" * ((seed + turn) % 50)), Waiter()
                waiters.append((message, waiter))
                outbox.put(message, waiter)
                put += 1
            case "send":
                data = bytes(session.outgoing(1 + (seed * turn) % 97))
                session.was_sent(len(data))
                collator.receive(data)
            case "commit":
                receive(session, outbox, collator.commit(b"o" * (turn % 3)))
            case "deaf commit":
                collator.commit(b"")
                session.opening()
                receive(session, outbox, collator.connect())
            case "cut":
                session.opening()
                receive(session, outbox, collator.connect())
            case "restart":
                # What a kill leaves: the file as it is, torn within the last append.
                assert spool._file is not None
                torn = encode_record(b"torn\n", spool._file.seed, spool._file.size)[: 1 + seed % 16]
                os.truncate(path, spool._file.size)
                spool._release()
                with open(path, "ab") as file:
                    file.write(torn)
                spool = Spool(path, "n", framing)
                outbox = Outbox(spool)
                session = Session("n", outbox)
                session.opening()
                receive(session, outbox, collator.connect())
    while session.has_more or outbox.unacknowledged_bytes:
        collator.receive(send_all(session))
        receive(session, outbox, collator.commit(b""))
    spool.close()
    for message, waiter in waiters:
        assert collator.file.count(message) == 1
        if waiter.result and waiter.result[0] is not None:
            assert collator.file[waiter.result[0] :].startswith(message)
    order = [collator.file.index(message) for message, _ in waiters]
    assert order == sorted(order)
