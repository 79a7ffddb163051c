"""The raw lane: a producer sends messages and hears nothing.

A clean end completes the last message where the framing can; a reset drops it, and so does everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collator.gather import Inbox
from collator.intake import Counts, no_room
from tailsrv.kit.errors import reason
from tailsrv.kit.logs import Repeated
from tailsrv.kit.reactor import READ

if TYPE_CHECKING:
    import socket

    from collator.framing import FramingError
    from collator.gather import Gatherer
    from collator.intake import Intake
    from tailsrv.kit.logs import Log


class RawLane:
    """Producers who hear nothing."""

    def __init__(self, intake: Intake, gatherer: Gatherer, log: Log) -> None:
        self.intake = intake
        self.gatherer = gatherer
        self.counts = Counts()
        self.producers: set[RawProducer] = set()
        self.log_dropped = Repeated(log.info, "incomplete message dropped")
        self.log_completed = Repeated(log.info, "last message completed")
        self.log_closed = Repeated(log.warning, "producer closed")

    def connected(self, sock: socket.socket, peer: str) -> None:
        """A producer came."""
        producer = RawProducer(self, sock, peer)
        self.producers.add(producer)
        self.intake.add(producer)

    def close(self) -> None:
        """Close all connections; what is incomplete is dropped."""
        for producer in tuple(self.producers):
            producer.close("stopped")


class RawProducer:
    """One connection of the raw lane."""

    __slots__ = ("fd", "inbox", "lane", "peer", "sock")

    def __init__(self, lane: RawLane, sock: socket.socket, peer: str) -> None:
        self.lane = lane
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.inbox = Inbox()

    def on_ready(self, _mask: int) -> None:
        """Take a turn."""
        self.lane.intake.turn(self)

    def interest(self) -> int:
        """What it sends, and no more."""
        return READ

    def delivered(self, added: int) -> None:
        """Nobody wants to know."""

    def ended(self) -> None:
        """Complete its last message where the framing can."""
        if self.lane.gatherer.finish(self.inbox):
            self.lane.counts.completed += 1
            self.lane.log_completed(peer=self.peer)
        self.close("unfinished")

    def lost(self, error: OSError) -> None:
        """What it did not finish, it did not say."""
        self.close("reset", error=reason(error))

    def misframed(self, error: FramingError) -> None:
        """Nothing behind this point can be told apart."""
        self.lane.counts.rejected["misframed"] += 1
        self.lane.log_closed(peer=self.peer, error=str(error))
        self.close("misframed")

    def evicted(self) -> None:
        """Its incomplete message was the largest."""
        self.lane.counts.rejected["no room"] += 1
        self.lane.log_closed(peer=self.peer, error=no_room(self.inbox))
        self.close("no room")

    def close(self, why: str, **facts: object) -> None:
        """Close the connection and drop what is incomplete, because of `why`."""
        carry = len(self.inbox.carry)
        if carry:
            self.lane.counts.dropped[why] += 1
            self.lane.log_dropped(peer=self.peer, bytes=carry, reason=why, **facts)
        self.lane.intake.remove(self)
        self.lane.producers.discard(self)
        self.sock.close()
