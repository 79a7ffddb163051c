"""Time limits of many keys on one timer."""

from __future__ import annotations

from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.reactor import Reactor


def test_a_time_that_begins_in_a_callback_does_not_delay_the_earlier_ones() -> None:
    events: list[str] = []
    reactor = Reactor()

    def expired(key: str) -> None:
        events.append(key)
        if key == "first":
            deadlines.start("last")
        elif key == "last":
            reactor.stop()

    deadlines: Deadlines[str] = Deadlines(reactor, 0.1, expired)
    deadlines.start("first")
    reactor.call_later(0.05, lambda: deadlines.start("second"))
    reactor.call_later(0.18, lambda: events.append("after the second, before the last"))
    reactor.run()
    reactor.close()
    assert events == ["first", "second", "after the second, before the last", "last"]
