"""The event loop of a daemon, turned by a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor


def turn_until(reactor: Reactor, condition: Callable[[], bool], shown: Callable[[], object] = str) -> None:
    """Turn the loop until the condition holds after a round. `shown` makes the text of the error if it never does."""

    def too_late() -> None:
        raise TimeoutError(str(shown()))

    def look() -> None:
        if condition():
            reactor.stop()

    limit = reactor.call_later(PATIENCE, too_late)
    reactor.after_round(look)
    reactor.post(lambda: None)
    reactor.run()
    reactor._after_round = tuple(call for call in reactor._after_round if call is not look)
    limit.cancel()
