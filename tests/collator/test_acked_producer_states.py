"""A connection of the acknowledged port changes its state as the table says, and not otherwise."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from collator.acked_producer import TRANSITIONS, AckedPort, AckedProducer, State
from collator.batch_builder import BatchBuilder
from collator.ingress import IngressScheduler
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.logs import configure
from tailsrv_runtime.reactor import READ, Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator


class Port:
    """An acknowledged port whose batches the test commits."""

    def __init__(self) -> None:
        log = configure("test", "error")
        self.reactor = Reactor()
        self.builder = BatchBuilder(make_framing("newline"), 1 << 20)
        ingress = IngressScheduler(self.reactor, self.builder, log, commit=lambda: False, busy=lambda: False)
        self.port = AckedPort(self.reactor, ingress, {}, log)
        self.peers: list[socket.socket] = []

    def connect(self) -> AckedProducer:
        """A connection that has sent nothing."""
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        before = set(self.port.connections)
        self.peers.append(peer)
        self.port.connected(ours, "peer")
        (connection,) = self.port.connections - before
        return connection

    def named(self, name: bytes = b"web\n") -> AckedProducer:
        """A connection that has sent its name."""
        connection = self.connect()
        self.peers[-1].sendall(name)
        connection.on_name(0)
        return connection

    def sent(self, data: bytes = b"one\n") -> AckedProducer:
        """A connection whose bytes are gathered and not committed."""
        connection = self.named()
        self.peers[-1].sendall(data)
        connection.on_ready(READ)
        return connection

    def commit(self) -> None:
        """Acknowledge what is gathered."""
        batch = self.builder.take()
        self.builder.release(batch)
        self.port.committed(batch)


@pytest.fixture
def port() -> Iterator[Port]:
    one = Port()
    yield one
    one.port.close()
    for peer in one.peers:
        peer.close()
    one.reactor.close()


def walk(port: Port, to: State) -> AckedProducer:
    """A connection that has come to the state by events alone."""
    if to is State.NAME_AWAITED:
        return port.connect()
    if to is State.COMMIT_AWAITED:
        port.sent()
        return port.named()
    if to is State.STREAMING:
        return port.named()
    if to is State.FINISHING:
        connection = port.sent()
        connection.ended()
        return connection
    connection = port.sent()
    connection.evicted("busy, no room")
    port.commit()
    if to is State.CLOSED:
        connection.close("stopped")
    return connection


@pytest.mark.parametrize("state", State)
def test_events_lead_to_each_state(port: Port, state: State) -> None:
    assert walk(port, state).state is state


@pytest.mark.parametrize("to", State)
@pytest.mark.parametrize("state", State)
def test_a_state_is_followed_by_those_of_its_table_only(port: Port, state: State, to: State) -> None:
    connection = walk(port, state)
    if to in TRANSITIONS[state]:
        connection._enter(to)
        assert connection.state is to
        connection.state = state  # for the fixture to close it
    else:
        with pytest.raises(RuntimeError, match=f"from {state.name} to {to.name}"):
            connection._enter(to)
        assert connection.state is state


def test_events_take_each_transition_of_the_table(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = set[tuple[State, State]]()
    honest = AckedProducer._enter

    def enter(self: AckedProducer, state: State) -> None:
        taken.add((self.state, state))
        honest(self, state)

    monkeypatch.setattr(AckedProducer, "_enter", enter)
    for state in State:
        connection = walk(port, state)
        port.commit()
        connection.close("stopped")
        port.port.close()
    for state in (State.NAME_AWAITED, State.COMMIT_AWAITED, State.STREAMING, State.FINISHING, State.LINGERING):
        walk(port, state).close("stopped")
        port.port.close()
        port.commit()
    port.named(b"no name\n")
    walk(port, State.COMMIT_AWAITED)
    port.commit()
    assert taken == {(state, to) for state, following in TRANSITIONS.items() for to in following}
