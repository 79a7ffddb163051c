"""Accepting: whatever goes wrong with one connection closes that one, and whatever goes wrong with accepting passes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_formats.addresses import Address, format_address, parse_address
from tailsrv_runtime import acceptor as acceptor_module
from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import Listener, bind
from tailsrv_runtime.reactor import READ, Reactor
from tailsrv_runtime.shortage import ShortageError
from tests.support.logs import RecordedLog
from tests.support.loops import turn_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 10.0


class Accepting:
    """An acceptor in a loop of its own, whose peers are kept or, while there are some, meet `faults`."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.log = RecordedLog()
        self.reactor = Reactor()
        self.reports: list[Exception] = []
        self.reactor.on_contained = self.reports.append
        self.faults: list[Exception] = []
        self.taken: list[socket.socket] = []
        self.failed: list[socket.socket] = []
        self.acceptor = Acceptor(self.reactor, listener, AllowList(), self._connected, self.log)

    def _connected(self, sock: socket.socket, _peer: str) -> None:
        self.reactor.register(sock.fileno(), READ, lambda _mask: None, abort=lambda: None)
        if self.faults:
            self.failed.append(sock)
            raise self.faults.pop(0)
        self.reactor.unregister(sock.fileno())
        self.taken.append(sock)

    def connect(self) -> socket.socket:
        sock = socket.socket(self.listener.socket.family)
        sock.settimeout(PATIENCE)
        sock.connect(self.listener.socket.getsockname())
        return sock

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until the condition holds."""
        turn_until(self.reactor, condition, lambda: f"{self.log.events} {self.reports}")

    def close(self) -> None:
        self.acceptor.close()
        for sock in (*self.taken, *self.failed):
            sock.close()
        self.reactor.close()


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accepting]:
    monkeypatch.setattr(acceptor_module, "PAUSE_SECONDS", 0.01)
    (listener,) = bind(Address(host="127.0.0.1"))
    accepting = Accepting(listener)
    yield accepting
    accepting.close()


def assert_next_is_accepted(accepting: Accepting) -> None:
    count = len(accepting.taken)
    with accepting.connect():
        accepting.until(lambda: len(accepting.taken) > count)


def test_an_unexpected_error_of_a_new_connections_owner_closes_that_connection(accepting: Accepting) -> None:
    accepting.faults = [KeyError("a bug")]
    with accepting.connect() as peer:
        accepting.until(lambda: bool(accepting.reports))
        assert peer.recv(1) == b""
    assert [type(report) for report in accepting.reports] == [KeyError]
    assert accepting.reactor.contained == 1
    assert len(accepting.reactor._handlers) == 2  # the loop's own pipe, and the listener
    assert_next_is_accepted(accepting)


def test_the_daemons_own_error_ends_the_loop(accepting: Accepting) -> None:
    accepting.faults = [FatalError("the disk is gone")]
    with accepting.connect(), pytest.raises(FatalError, match="the disk is gone"):
        accepting.until(lambda: False)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ShortageError(OSError(errno.ENOSPC, "No space"), "out of epoll watches", "raise it"), "raise it"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "free some memory"),
    ],
)
def test_a_connection_that_the_loop_has_no_room_for_is_closed_and_logged(
    accepting: Accepting, error: OSError, advice: str
) -> None:
    accepting.faults = [error]
    with accepting.connect() as peer:
        accepting.until(lambda: not accepting.faults)
        assert peer.recv(1) == b""
    (line,) = accepting.log.of("connection dropped")
    assert (line["error"], line["advice"]) == (error.strerror, advice)
    assert not accepting.reports
    assert_next_is_accepted(accepting)


def test_no_connection_is_accepted_while_the_reserve_is_incomplete(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else peers take what becomes free, and a health check never gets one."""
    lacking = [True, True, True, False]
    monkeypatch.setattr(acceptor_module, "hold_descriptors", lambda: lacking.pop(0))
    monkeypatch.setattr(acceptor_module, "is_drawn_on", lambda: lacking[0])
    monkeypatch.setattr(acceptor_module, "PAUSE_SECONDS", 0.01)
    with accepting.connect():
        accepting.until(lambda: bool(accepting.taken))
    assert lacking == [False]
    (line,) = accepting.log.of("accepting paused")
    assert line["advice"] == "raise LimitNOFILE= (ulimit -n)"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ECONNRESET, errno.ENOTCONN])
def test_a_peer_that_is_gone_before_its_socket_is_set_up_costs_nothing_but_itself(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Gone(socket.socket):
        def setsockopt(self, *_: Any) -> None:
            raise OSError(number, os.strerror(number))

    accept = accepting.listener.socket.accept
    gone: list[socket.socket] = []

    def accept_gone() -> tuple[socket.socket, object]:
        sock, peer = accept()
        gone.append(Gone(fileno=sock.detach()))
        return gone[0], peer

    monkeypatch.setattr(accepting.listener, "socket", _Replaced(accepting.listener.socket, accept_gone))
    with accepting.connect():
        accepting.until(lambda: bool(gone))
    assert gone[0].fileno() == -1
    assert not accepting.log.events
    monkeypatch.undo()
    assert_next_is_accepted(accepting)


class _Replaced:
    """A listening socket with another `accept`."""

    def __init__(self, sock: socket.socket, accept: Callable[[], object]) -> None:
        self._sock = sock
        self.accept = accept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def failing(accepting: Accepting, *numbers: int) -> _Replaced:
    """The listener's socket, whose accept fails so often first."""
    left = list(numbers)
    accept = accepting.listener.socket.accept

    def failing_accept() -> object:
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return accept()

    return _Replaced(accepting.listener.socket, failing_accept)


OF_THE_CONNECTION = (errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)
OF_THE_LISTENER = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EBADF, errno.EINVAL, errno.EIO)


@pytest.mark.parametrize("number", [*OF_THE_CONNECTION, *OF_THE_LISTENER], ids=errno.errorcode.get)
def test_after_every_error_of_accept_the_next_connection_is_accepted(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(accepting.listener, "socket", failing(accepting, *[number] * 3))
    assert_next_is_accepted(accepting)
    paused = accepting.log.of("accepting paused")
    assert [line["error"] for line in paused] == ([os.strerror(number)] if number in OF_THE_LISTENER else [])


def shut_down(listener: Listener) -> None:
    """As a process does that has inherited the socket."""
    listener.socket.shutdown(socket.SHUT_RDWR)


def destroy(listener: Listener) -> None:
    """As an operator does with ss; where the kernel or this user may not, as above."""
    port = listener.socket.getsockname()[1]
    subprocess.run(["ss", "-K", "-l", "-n", "sport", "=", str(port)], check=False, capture_output=True)
    if listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        shut_down(listener)


@pytest.mark.parametrize(
    ("address", "stop"),
    [
        pytest.param("127.0.0.1:0", shut_down, id="shut down"),
        pytest.param("127.0.0.1:0", destroy, id="destroyed", marks=pytest.mark.needs("ss")),
        pytest.param(":0", destroy, id="destroyed, both families", marks=pytest.mark.needs("ss")),
        pytest.param("unix:{}", shut_down, id="unix"),
    ],
)
def test_a_listener_that_stopped_listening_listens_again_and_the_loop_does_not_spin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, stop: Callable[[Listener], None]
) -> None:
    monkeypatch.setattr(acceptor_module, "PAUSE_SECONDS", 0.05)
    (listener,) = bind(parse_address(address.format(tmp_path / "socket")))
    accepting = Accepting(listener)
    stop(listener)
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    accepting.reactor.after_round(count)
    accepting.reactor.call_later(0.2, accepting.reactor.stop)
    accepting.reactor.run()
    assert rounds < 20
    assert accepting.log.of("accepting paused")
    if not address.startswith("unix:"):  # which the kernel shuts down for ever
        assert format_address(listener.socket.getsockname()) == listener.address
        with accepting.connect() as peer:
            accepting.until(lambda: bool(accepting.taken))
            accepting.taken[0].sendall(b"served")
            assert peer.recv(6) == b"served"
    accepting.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_accepting_is_resumed_later_when_the_loop_has_no_room_for_the_listener(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    left = [number] * 3
    register = accepting.reactor.register

    def full(fd: int, *arguments: Any, **more: Any) -> None:
        if left and fd == accepting.listener.socket.fileno():
            raise OSError(left.pop(), os.strerror(number))
        register(fd, *arguments, **more)

    monkeypatch.setattr(accepting.reactor, "register", full)
    monkeypatch.setattr(accepting.listener, "socket", failing(accepting, errno.EMFILE))
    assert_next_is_accepted(accepting)
    assert not left


def test_a_listener_that_is_closed_during_a_pause_harms_no_other_descriptor(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting.listener, "socket", failing(accepting, errno.EMFILE))
    with accepting.connect():
        accepting.until(lambda: bool(accepting.log.of("accepting paused")))
    number = accepting.listener.socket.fileno()
    accepting.listener.close()
    one, other = socket.socketpair()
    if one.fileno() != number:
        os.dup2(one.fileno(), number)
    calls: list[int] = []
    accepting.reactor.register(number, READ, calls.append)
    accepting.reactor.call_later(0.05, lambda: other.sendall(b"x"))
    accepting.until(lambda: bool(calls))
    accepting.acceptor.close()
    calls.clear()
    accepting.until(lambda: bool(calls))
    assert os.read(number, 10) == b"x"  # it is open, and the loop still watches it
    accepting.reactor.unregister(number)
    for sock in (one, other):
        sock.close()


def test_queued_connections_are_taken_once_and_not_asked_for_during_a_pause(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting.listener, "socket", failing(accepting, *[errno.EMFILE] * 100))
    accepting.acceptor.take_queued()
    assert len(accepting.reactor._timers) == 1
    accepting.acceptor.close()
    assert accepting.reactor._timeout() == -1


def test_connections_that_wait_in_the_queue_are_taken_before_the_listener_is_closed(accepting: Accepting) -> None:
    waiting = [accepting.connect() for _ in range(200)]
    accepting.acceptor.take_queued()
    assert len(accepting.taken) == 200
    for peer in waiting:
        peer.close()
