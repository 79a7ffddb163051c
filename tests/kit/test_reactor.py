"""The loop: order, timers, threads, signals."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tailsrv.kit.deadlines import Deadlines
from tailsrv.kit.reactor import READ, Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


def test_timers_run_in_their_order_and_a_cancelled_one_never(reactor: Reactor) -> None:
    ran: list[str] = []
    reactor.call_later(0.03, reactor.stop)
    reactor.call_later(0.02, lambda: ran.append("second"))
    reactor.call_later(0.01, lambda: ran.append("first"))
    reactor.call_later(0.0, lambda: ran.append("never")).cancel()
    reactor.run()
    assert ran == ["first", "second"]


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


def test_deadlines_that_are_all_cancelled_wake_nobody(reactor: Reactor) -> None:
    deadlines: Deadlines[str] = Deadlines(reactor, 10.0, pytest.fail)
    deadlines.start("a")
    assert reactor._timeout() > 0
    deadlines.cancel("a")
    assert reactor._timeout() == -1
