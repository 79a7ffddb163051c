"""The loop: order, timers, threads, signals."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading

import pytest

from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.reactor import READ, Reactor
from tailsrv_runtime.shortage import ShortageError


def test_timers_run_in_their_order_and_a_cancelled_one_never(reactor: Reactor) -> None:
    ran: list[str] = []
    reactor.call_later(0.03, reactor.stop)
    reactor.call_later(0.02, lambda: ran.append("second"))
    reactor.call_later(0.01, lambda: ran.append("first"))
    reactor.call_later(0.0, lambda: ran.append("never")).cancel()
    reactor.run()
    assert ran == ["first", "second"]


@pytest.mark.parametrize("seconds", [30 * 86400.0, 1e12, 1e300, float("inf")])
def test_a_timer_may_be_arbitrarily_far_away(reactor: Reactor, seconds: float) -> None:
    """The kernel's longest time-out is 24 days."""
    far = reactor.call_later(seconds, reactor.stop)
    reactor.post(lambda: reactor.call_later(0.01, reactor.stop))
    reactor.run()
    assert far.callback is not None


def test_a_loop_that_cannot_be_made_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self) -> None:
            self.closed = False

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.closed = True

    before = os.listdir("/proc/self/fd")
    full = Full()
    monkeypatch.setattr(select, "epoll", lambda: full)
    with pytest.raises(ShortageError) as raised:
        Reactor()
    assert raised.value.advice == "raise fs.epoll.max_user_watches"
    assert full.closed
    assert os.listdir("/proc/self/fd") == before


def test_a_call_from_another_thread_wakes_the_loop_and_runs_on_its_thread(reactor: Reactor) -> None:
    threads: list[int] = []

    def called() -> None:
        threads.append(threading.get_ident())
        reactor.stop()

    other = threading.Thread(target=reactor.post, args=(called,))
    other.start()
    reactor.run()
    other.join()
    assert threads == [threading.get_ident()]


def test_a_handler_is_called_until_it_has_done_all_and_the_round_ends_after_each(reactor: Reactor) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"abc")
    story: list[str] = []

    def readable(_mask: int) -> None:
        story.append(os.read(read_end, 1).decode())
        if story[-1] == "c":
            reactor.stop()

    reactor.register(read_end, READ, readable)
    reactor.after_round(lambda: story.append("-"))
    reactor.run()
    reactor.unregister(read_end)
    reactor.unregister(read_end)
    os.close(read_end)
    os.close(write_end)
    assert story == ["a", "-", "b", "-", "c", "-"]


def test_a_signal_is_handled_in_the_loop(reactor: Reactor) -> None:
    previous = signal.getsignal(signal.SIGUSR2)
    try:
        reactor.on_signal(signal.SIGUSR2, reactor.stop)
        os.kill(os.getpid(), signal.SIGUSR2)
        reactor.run()
        assert not reactor._running
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_what_a_handler_raises_ends_the_loop(reactor: Reactor) -> None:
    def fail() -> None:
        raise LookupError("broken")

    reactor.post(fail)
    with pytest.raises(LookupError, match="broken"):
        reactor.run()


def test_deadlines_expire_in_order_and_leave_no_timer_behind(reactor: Reactor) -> None:
    expired: list[str] = []
    deadlines: Deadlines[str] = Deadlines(reactor, 0.01, expired.append)
    for key in ("a", "b", "c"):
        deadlines.start(key)
    deadlines.cancel("b")
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    assert expired == ["a", "c"]
    assert reactor._timeout() == -1


def test_cancelled_deadlines_do_not_wake_the_loop(reactor: Reactor) -> None:
    deadlines: Deadlines[str] = Deadlines(reactor, 10.0, pytest.fail)
    deadlines.start("a")
    assert reactor._timeout() > 0
    deadlines.cancel("a")
    assert reactor._timeout() == -1


class ClosesItself:
    """A peer on one end of a socket pair whose handler fails."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.sock, self.peer = socket.socketpair()
        reactor.register(self.sock.fileno(), READ, self.handle, abort=self.close)

    def handle(self, _mask: int) -> None:
        raise KeyError(self.sock.recv(100))

    def close(self) -> None:
        self.reactor.unregister(self.sock.fileno())
        self.sock.close()


def test_an_unexpected_error_of_a_peers_handler_closes_that_peer_and_the_loop_goes_on(reactor: Reactor) -> None:
    reported: list[Exception] = []
    reactor.on_contained = reported.append
    bad = ClosesItself(reactor)
    bad.peer.sendall(b"input")
    good, other = socket.socketpair()
    reactor.register(good.fileno(), READ, lambda _mask: reactor.stop())
    reactor.call_later(0.05, lambda: other.sendall(b"later"))
    reactor.run()
    assert bad.peer.recv(1) == b""
    assert [str(error) for error in reported] == ["b'input'"]
    assert reactor.contained == 1
    for sock in (good, other, bad.peer):
        sock.close()


def test_a_peer_whose_closing_fails_is_unregistered(reactor: Reactor) -> None:
    reported: list[Exception] = []
    reactor.on_contained = reported.append
    bad = ClosesItself(reactor)

    def fail() -> None:
        raise ValueError("closing failed, too")

    reactor.unregister(bad.sock.fileno())
    reactor.register(bad.sock.fileno(), READ, bad.handle, abort=fail)
    bad.peer.sendall(b"input")
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    assert [type(error) for error in reported] == [KeyError, ValueError]
    for sock in (bad.sock, bad.peer):
        sock.close()


def test_a_peer_that_failed_half_closed_is_forgotten(reactor: Reactor) -> None:
    reported: list[Exception] = []
    reactor.on_contained = reported.append
    bad, peer = socket.socketpair()
    number = bad.fileno()

    def close_and_fail(_mask: int) -> None:
        bad.close()
        raise KeyError("after the close")

    def fail() -> None:
        raise ValueError("it is closed already")

    reactor.register(number, READ, close_and_fail, abort=fail)
    peer.sendall(b"input")
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    assert [type(error) for error in reported] == [KeyError, ValueError]
    assert number not in reactor._handlers
    peer.close()


def test_the_daemons_own_errors_end_the_loop(reactor: Reactor) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def fail(_mask: int) -> None:
        raise FatalError("the disk is gone")

    reactor.register(reader, READ, fail, abort=lambda: None)
    with pytest.raises(FatalError):
        reactor.run()
    for fd in (reader, writer):
        os.close(fd)


def test_an_event_never_reaches_a_successor_of_its_descriptor(reactor: Reactor) -> None:
    """In one round one handler closes another descriptor, whose number is given to a new connection."""
    masks: list[int] = []
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    fresh: list[socket.socket] = []

    def replace(_mask: int) -> None:
        for sock in (first, second):
            reactor.unregister(sock.fileno())
        number = second.fileno()
        second.close()
        new, new_peer = socket.socketpair()
        fresh.extend((new, new_peer))
        if new.fileno() != number:
            os.dup2(new.fileno(), number)
        reactor.register(number, READ, masks.append)
        reactor.call_later(0.02, reactor.stop)

    reactor.register(first.fileno(), READ, replace)
    reactor.register(second.fileno(), READ, replace)
    for peer in (first_peer, second_peer):
        peer.sendall(b"x")
    second_peer.close()  # a hang-up waits for the one that is handled second
    reactor.run()
    assert masks == []
    for sock in (first, first_peer, *fresh):
        sock.close()


def test_no_signal_is_lost_while_other_threads_flood_the_loop(reactor: Reactor) -> None:
    """Calls from other threads share the pipe that signals come through."""
    signals = 0

    def signalled() -> None:
        nonlocal signals
        signals += 1
        reactor.stop()

    reactor.on_signal(signal.SIGUSR1, signalled)
    for _ in range(200_000):
        reactor.post(lambda: None)
    os.kill(os.getpid(), signal.SIGUSR1)
    reactor.call_later(10, reactor.stop)
    reactor.run()
    assert signals == 1
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_an_unexpected_error_at_a_deadline_closes_the_peer_that_it_was_for(reactor: Reactor) -> None:
    aborted: list[str] = []

    def expired(key: str) -> None:
        raise KeyError(key)

    deadlines: Deadlines[str] = Deadlines(reactor, 0.01, expired, aborted.append)
    deadlines.start("first")
    deadlines.start("second")
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    assert aborted == ["first", "second"]
    assert reactor.contained == 2


@pytest.mark.parametrize("second", [ValueError("closing failed, too"), OSError(9, "Bad file descriptor")])
def test_a_peer_whose_closing_fails_at_its_deadline_does_not_stop_other_deadlines(
    reactor: Reactor, second: Exception
) -> None:
    """Work that is not done in a registered handler is contained by the same rule."""
    reported: list[Exception] = []
    reactor.on_contained = reported.append
    expired: list[str] = []

    def expire(key: str) -> None:
        expired.append(key)
        raise KeyError(key)

    def abort(_key: str) -> None:
        raise second

    deadlines: Deadlines[str] = Deadlines(reactor, 0.01, expire, abort)
    for key in ("first", "second"):
        deadlines.start(key)
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    assert expired == ["first", "second"]
    assert [type(error) for error in reported] == [KeyError, type(second)] * 2
    assert reactor.contained == 2


def test_the_daemons_own_error_in_closing_a_peer_ends_the_loop(reactor: Reactor) -> None:
    def fatal(_key: str) -> None:
        raise FatalError("the disk is gone")

    def expire(key: str) -> None:
        raise KeyError(key)

    deadlines: Deadlines[str] = Deadlines(reactor, 0.01, expire, fatal)
    deadlines.start("peer")
    with pytest.raises(FatalError):
        reactor.run()


def test_a_deadline_that_is_started_while_others_expire_has_its_full_time(reactor: Reactor) -> None:
    expired: list[str] = []

    def expire(key: str) -> None:
        expired.append(key)
        if key == "first":
            deadlines.cancel("second")
            deadlines.start("third")

    deadlines: Deadlines[str] = Deadlines(reactor, 0.01, expire)
    for key in ("first", "second"):
        deadlines.start(key)
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
    assert expired == ["first", "third"]
    assert reactor._timeout() == -1


def test_a_call_that_a_thread_posts_after_the_end_is_dropped() -> None:
    """A thread that waits for a disk outlives the loop; the loop's descriptors may be somebody else's by then."""
    reactor = Reactor()
    reactor.close()
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    try:
        reactor.post(lambda: None)
        with pytest.raises(BlockingIOError):
            os.read(read_end, 1)
    finally:
        os.close(read_end)
        os.close(write_end)
    reactor.close()
