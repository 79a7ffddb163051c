"""Whose incomplete message has made no progress for longest.

A message makes progress by growing by `PROGRESS_BYTES`, or by being completed so that another one begins. A byte now
and then is none: somebody who holds memory that way goes before a producer that really sends.

Sources are kept in the order of their progress, each in one of two dicts: to note progress is to move an entry to an
end, whatever their number. `_excused` are those that would have made some if there had been room to read them: they go
last.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collator.batch_builder import Inbox

PROGRESS_BYTES: Final = 1 << 12
"""By how much an incomplete message has to grow to count as one that is being sent."""


class Holder(Protocol):
    """A source that may hold an incomplete message."""

    inbox: Inbox


H = TypeVar("H", bound=Holder)


class Partials(Generic[H]):
    """The sources with an incomplete message."""

    def __init__(self) -> None:
        self._sending: dict[H, float] = {}
        self._excused: dict[H, float] = {}

    def note(self, source: H, *, completed: bool) -> None:
        """`source` has delivered bytes; `completed`: and with them a message."""
        inbox = source.inbox
        size = len(inbox.partial)
        if not size:
            if inbox.noted:
                self.forget(source)
        elif completed or not inbox.noted or size - inbox.noted >= PROGRESS_BYTES:
            if inbox.noted:
                self.forget(source)
            self._sending[source] = time.monotonic()
            inbox.noted = size

    def excuse(self, source: H, waiting: int) -> None:
        """`source` is not read from for lack of room, while `waiting` bytes of it are in the kernel."""
        if waiting >= PROGRESS_BYTES and source in self._sending:
            self._excused[source] = self._sending.pop(source)

    def forget(self, source: H) -> None:
        """It has no incomplete message any more."""
        if source.inbox.noted:
            source.inbox.noted = 0
            self._sending.pop(source, None)
            self._excused.pop(source, None)

    def oldest(self) -> tuple[H, float] | None:
        """Who has to go first, and since when (monotonic clock) it has made no progress."""
        for sources in (self._sending, self._excused):
            for entry in sources.items():
                return entry
        return None
