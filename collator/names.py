"""The names of the acknowledged port: the progress of each, and the one connection that uses it.

A producer that reconnects takes its name over from its former connection, which may still have uncommitted bytes. Until
these are committed the new connection waits: only then its ACKED is final.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from collator.acks import Progress

if TYPE_CHECKING:
    from tailsrv_runtime.reactor import Reactor


class Holder(Protocol):
    """A connection with a name."""

    name: bytes
    progress: Progress
    peer: str

    def superseded(self, by: str) -> None:
        """Close, because the peer `by` uses the name now."""

    def greet(self) -> None:
        """Send ACKED and AT, and begin to read."""

    def abort(self) -> None:
        """Close after an unexpected error in the work for it."""


class Names:
    """All names that ever had a committed message, and those in use."""

    def __init__(self, reactor: Reactor, known: dict[bytes, Progress]) -> None:
        """`known`: the progress of each name in the journal; new names are added to it."""
        self._reactor = reactor
        self._known = known
        self._holders: dict[bytes, Holder] = {}
        self.waiting: dict[Progress, Holder] = {}
        """The connections that wait until the bytes of their name are committed."""

    def claim(self, holder: Holder) -> Progress:
        """Let `holder` use its name, and close the connection that used it. Returns the progress of the name.

        A producer may notice a broken connection before the collator does: so the newer connection is the right one.
        """
        name = holder.name
        predecessor = self._holders.get(name)
        if predecessor is not None:
            try:
                predecessor.superseded(by=holder.peer)
            except Exception as error:  # noqa: BLE001 - contained, or raised again: it is not the newer connection's error
                self._reactor.contain(error, predecessor.abort)
        progress = self._known.get(name)
        if progress is None:
            progress = self._known[name] = Progress()
        self._holders[name] = holder
        return progress

    def wait(self, holder: Holder) -> None:
        """Let `holder` wait until the bytes of its name are committed."""
        self.waiting[holder.progress] = holder

    def release(self, holder: Holder) -> None:
        """Stop the use of the name by `holder`, if it uses it."""
        if holder.name and self._holders.get(holder.name) is holder:
            del self._holders[holder.name]

    def forget(self, holder: Holder) -> None:
        """Note that `holder`, which uses its name no more, is closed."""
        name, progress = holder.name, holder.progress
        if self.waiting.get(progress) is holder:
            del self.waiting[progress]
        is_unused = not progress.gathered and name not in self._holders
        # `is`: a later connection of this name may have put a progress of its own there, and messages into the stream.
        if name and is_unused and self._known.get(name) is progress:
            del self._known[name]  # a name without a message is not remembered
