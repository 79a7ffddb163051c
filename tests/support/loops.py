"""A daemon's loop and log, for tests that run parts of a daemon in their own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.daemons import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor


class Lines:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **facts: object) -> None:
        self.events.append((event, facts))

    info = warning = error = debug

    def of(self, event: str) -> list[dict[str, Any]]:
        """What was said with this event."""
        return [facts for each, facts in self.events if each == event]


def turn_until(reactor: Reactor, condition: Callable[[], bool], trouble: Callable[[], object] = str) -> None:
    """Turn the loop until the condition holds after a round. `trouble`: what to show when it does not."""

    def too_late() -> None:
        raise TimeoutError(str(trouble()))

    def look() -> None:
        if condition():
            reactor.stop()

    limit = reactor.call_later(PATIENCE, too_late)
    reactor.after_round(look)
    reactor.post(lambda: None)
    reactor.run()
    reactor._after_round = tuple(call for call in reactor._after_round if call is not look)
    limit.cancel()
