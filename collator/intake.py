"""Who may deliver, and when.

A connection that is ready gets one bounded receive a round. When there is no room for it, or nothing can be written,
it is parked: taken off the loop, so that it costs nothing, and served before everybody else when there is room again,
in the order of parking. Nothing is read that can't be held.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from collator.framing import FramingError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from collator.gather import Gatherer, Inbox
    from tailsrv.kit.reactor import Reactor

DRAIN_TURNS: Final = 64
"""How many turns a producer gets at the end: who never stops sending is cut off somewhere."""


class Counts:
    """What became of connections and messages, by reason."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = dict.fromkeys(
            ("reset", "unfinished", "misframed", "superseded", "no room", "stopped"), 0
        )
        """Incomplete messages that were dropped."""
        self.rejected: dict[str, int] = dict.fromkeys(("misframed", "name", "superseded", "no room", "late"), 0)
        """Connections that the collator closed."""
        self.completed = 0
        """Last messages that got their terminator here."""


def no_room(inbox: Inbox) -> str:
    """Why the holder of `inbox` had to go."""
    return f"--buffer-bytes is full of incomplete messages, and this one's is the largest ({len(inbox.carry)} bytes)"


class Source(Protocol):
    """A connection that delivers messages."""

    sock: socket.socket
    fd: int
    inbox: Inbox

    def on_ready(self, mask: int) -> None:
        """The loop's handler."""

    def interest(self) -> int:
        """Which events it wants."""

    def delivered(self, added: int) -> None:
        """So many bytes of its messages have just joined the end of the batch."""

    def ended(self) -> None:
        """It has sent all it will send, and said so (FIN)."""

    def lost(self, error: OSError) -> None:
        """It is gone without saying so."""

    def misframed(self, error: FramingError) -> None:
        """What it sends can't be a message; what came before has been delivered."""

    def evicted(self) -> None:
        """There is no room but what its incomplete message takes."""


class Intake:
    """Takes turns among the sources."""

    def __init__(
        self, reactor: Reactor, gatherer: Gatherer, commit: Callable[[], bool], busy: Callable[[], bool]
    ) -> None:
        """``commit()`` begins to commit what is gathered and returns whether it could. ``busy()``: one is under way."""
        self._reactor = reactor
        self._gatherer = gatherer
        self._commit = commit
        self._busy = busy
        self._parked: deque[Source] = deque()
        self.closed = False
        """Whether nothing is read at present, room or not."""
        self.sources: set[Source] = set()

    def add(self, source: Source) -> None:
        """Serve `source` from now on."""
        self.sources.add(source)
        self._register(source)

    def remove(self, source: Source) -> None:
        """Serve it no more, before its socket is closed. Its incomplete message is forgotten."""
        self.sources.discard(source)
        self._reactor.unregister(source.fd)
        self._gatherer.drop(source.inbox)

    def turn(self, source: Source) -> None:
        """`source` is ready: receive what it has, once."""
        if self.closed or self._parked:
            self._park(source)
            return
        self._receive(source)

    def resume(self) -> None:
        """There may be room: let those who were parked have their turn."""
        parked = self._parked
        for _ in range(len(parked)):
            if self.closed:
                return
            source = parked[0]
            # It may have been closed while it waited, or by what its turn led to.
            if source in self.sources and not self._receive(source, parked=True):
                return
            parked.popleft()
            if source in self.sources:
                self._register(source)

    def watch(self, source: Source) -> None:
        """Its interest has changed."""
        if source not in self._parked:
            self._reactor.modify(source.fd, source.interest())

    def drain(self) -> None:
        """Take in what the kernel holds for everybody, before the end: what was sent and forgotten is there."""
        batch = self._gatherer.batch
        for source in tuple(self.sources):
            for _ in range(DRAIN_TURNS):
                before = batch.size, len(source.inbox.carry)
                if source not in self.sources or self.closed or not self._receive(source):
                    break
                batch = self._gatherer.batch
                if before == (batch.size, len(source.inbox.carry)):
                    break

    @property
    def crowded(self) -> bool:
        """Whether somebody is parked."""
        return bool(self._parked)

    def _register(self, source: Source) -> None:
        self._reactor.register(source.fd, source.interest(), source.on_ready)

    def _receive(self, source: Source, *, parked: bool = False) -> bool:
        """Receive from `source`, or park it: whether there was room."""
        space = self._gatherer.space(source.inbox)
        while space is None:
            if not self._make_room():
                if not parked:
                    self._park(source)
                return False
            if source not in self.sources:
                return True  # it was the one that had to go
            space = self._gatherer.space(source.inbox)
        try:
            count = source.sock.recv_into(space)
        except BlockingIOError:
            return True
        except OSError as error:
            source.lost(error)
            return True
        if count:
            self._take_in(source, count)
        else:
            source.ended()
        return True

    def _take_in(self, source: Source, count: int) -> None:
        batch = self._gatherer.batch
        before = batch.size
        wrong: FramingError | None = None
        try:
            self._gatherer.received(source.inbox, count)
        except FramingError as error:
            wrong = error
        if batch.size != before:
            source.delivered(batch.size - before)
        if wrong is not None:
            source.misframed(wrong)

    def _make_room(self) -> bool:
        """Commit, or close who holds most: whether it is worth asking for space again."""
        if self._commit():
            return True
        if self._busy():
            return False
        hoarder = max(self.sources, key=lambda source: len(source.inbox.carry), default=None)
        if hoarder is None or not hoarder.inbox.carry:
            return False
        hoarder.evicted()
        return True

    def _park(self, source: Source) -> None:
        self._reactor.unregister(source.fd)
        self._parked.append(source)
