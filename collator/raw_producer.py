"""The raw lane: a producer sends messages and hears nothing.

A clean end completes the last message where the framing can; a reset drops it, and so does everything else.

A client of another port that comes here by mistake is recognised by its first bytes (wrongclient.py), and its line does
not become a message. These bytes stay in the kernel until it is clear what they are: nothing of them is held here, and
nothing is paid for them once the connection is a producer's. A connection goes through:

    first → sending     the first bytes are a producer's: at once, in nearly all cases
    first → held        they are exactly a header or a name line; more bytes, or the end: → sending; silence for
                        `HOLD_SECONDS`: reset
    first → closed      they are an HTTP request
"""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from collator.batch_builder import Inbox
from collator.ingress import Counts
from collator.wrongclient import FIRST_BYTES, may_become, recognise
from tailsrv_formats.errors import reason
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.logs import Repeated, printable
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    from collator.batch_builder import BatchBuilder
    from collator.ingress import IngressScheduler
    from collator.wrongclient import WrongClient
    from tailsrv_formats.framing import Framing, FramingError
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

HOLD_SECONDS: Final = 1.0
"""How long a client is silent after its first line to be taken for what that looks like."""

NEWS: Final = READ | select.EPOLLRDHUP | select.EPOLLET
"""Further bytes, or the end, while those that are known stay in the kernel."""


class RawPort:
    """Producers who hear nothing."""

    def __init__(
        self,
        reactor: Reactor,
        ingress: IngressScheduler,
        builder: BatchBuilder,
        framing: Framing,
        log: Log,
        *,
        check: bool,
    ) -> None:
        """`check`: whether clients of other ports are recognised."""
        self.reactor = reactor
        self.ingress = ingress
        self.builder = builder
        self.framing = framing
        self.counts = Counts()
        self._check = check
        self.producers: set[RawProducer] = set()
        self.first: set[RawProducer] = set()
        """Those whose first bytes are still to be looked at."""
        self.deadlines: Deadlines[RawProducer] = Deadlines(
            reactor, HOLD_SECONDS, lambda held: held.expired(), lambda held: held.abort()
        )
        self.log_dropped = Repeated(log.info, "incomplete message dropped")
        self.log_completed = Repeated(log.info, "last message completed")
        self.log_closed = Repeated(log.warning, "producer closed")
        self.log_wrong = Repeated(log.warning, "client of another port closed")

    def connected(self, sock: socket.socket, peer: str) -> None:
        """A producer came."""
        producer = RawProducer(self, sock, peer)
        # Registered first, because that may fail for want of memory: the socket is closed then.
        if self._check:
            self.reactor.register(producer.fd, READ, producer.on_first, producer.abort)
            self.first.add(producer)
        else:
            self.ingress.add(producer)
        self.producers.add(producer)

    def release(self) -> None:
        """The end comes: what is held is a producer's, for all we know, and its messages are taken in."""
        for producer in tuple(self.first):
            producer.on_first(select.EPOLLRDHUP)

    def close(self) -> None:
        """Close all connections; what is incomplete is dropped."""
        for producer in tuple(self.producers):
            producer.close("stopped")


class RawProducer:
    """One connection of the raw port."""

    __slots__ = ("_held", "_seen", "fd", "inbox", "peer", "port", "sock")

    def __init__(self, port: RawPort, sock: socket.socket, peer: str) -> None:
        self.port = port
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.inbox = Inbox()
        self._held = False
        self._seen = 0
        """First bytes that are still in the kernel."""

    # --- its first bytes

    def on_first(self, mask: int) -> None:
        """Look at the first bytes, which stay in the kernel."""
        port = self.port
        try:
            first = self.sock.recv(FIRST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self.close("reset", error=reason(error))
            return
        self._seen = len(first)
        wrong = recognise(first)
        if wrong is not None and wrong.at_once:
            self._reject(wrong, first)
        elif mask & select.EPOLLRDHUP or not first:
            self._begin()  # it has said all it wants to say, as a producer does
        elif wrong is not None or (may_become(first) and not port.framing.reach(first, 0, len(first))):
            self._hold(wrong)
        else:
            self._begin()

    def _hold(self, wrong: WrongClient | None) -> None:
        """Leave the bytes where they are until there are more. An incomplete line may take as long as it likes."""
        port = self.port
        if wrong is not None:
            port.deadlines.start(self)
        else:
            port.deadlines.cancel(self)
        if not self._held:
            self._held = True
            port.reactor.modify(self.fd, NEWS)  # which looks once more: nothing that came meanwhile is missed

    def _begin(self) -> None:
        """It is a producer: from here on its bytes go the shortest way."""
        port = self.port
        self._seen = 0
        self._leave_first()
        port.ingress.add(self)
        port.ingress.serve(self)

    def expired(self) -> None:
        """Nothing followed its first line, unless that has arrived at this moment."""
        poll = select.poll()
        poll.register(self.fd, select.POLLRDHUP)
        ended = bool(poll.poll(0))
        try:
            first = self.sock.recv(FIRST_BYTES, socket.MSG_PEEK)
        except OSError as error:
            self.close("reset", error=reason(error))
            return
        wrong = recognise(first)
        if wrong is None or ended:
            self._begin()
        else:
            self._reject(wrong, first)

    def _reject(self, wrong: WrongClient, first: bytes) -> None:
        """Reset the connection: a clean end would look like success."""
        port = self.port
        port.counts.rejected["wrong port"] += 1
        port.log_wrong(
            peer=self.peer,
            sent=printable(first),
            looks_like=wrong.looks_like,
            wanted=wrong.wanted,
            advice="nothing of it is appended; --accept-any-message takes such lines for messages",
        )
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._seen = 0
        self.close("wrong port")

    def _leave_first(self) -> None:
        if self in self.port.first:
            self.port.first.discard(self)
            self.port.deadlines.cancel(self)
            self.port.reactor.unregister(self.fd)

    # --- its messages

    def on_ready(self, _mask: int) -> None:
        """Take a turn."""
        self.port.ingress.serve(self)

    def interest(self) -> int:
        """What it sends, and no more."""
        return READ

    def appended(self, added: int) -> None:
        """Nobody wants to know."""

    def ended(self) -> None:
        """Complete its last message where the framing can."""
        if self.port.ingress.complete(self):
            self.port.counts.completed += 1
            self.port.log_completed(peer=self.peer)
        self.close("unfinished")

    def lost(self, error: OSError) -> None:
        """What it did not finish, it did not say."""
        self.close("reset", error=reason(error))

    def misframed(self, error: FramingError) -> None:
        """Nothing behind this point can be told apart."""
        self.port.counts.rejected["misframed"] += 1
        self.port.log_closed(peer=self.peer, error=str(error))
        self.close("misframed")

    def evicted(self, why: str) -> None:
        """There is no room for its incomplete message."""
        self.port.counts.rejected["no room"] += 1
        self.port.log_closed(peer=self.peer, error=why)
        self.close("no room")

    # --- its end

    def abort(self) -> None:
        """Something unexpected went wrong in the work for it."""
        self.close("failed")

    def close(self, why: str, **facts: object) -> None:
        """Close the connection and drop what is incomplete, because of `why`."""
        partial = len(self.inbox.partial) or self._seen
        if partial:
            self.port.counts.dropped[why] += 1
            self.port.log_dropped(peer=self.peer, bytes=partial, reason=why, **facts)
        self._leave_first()
        self.port.ingress.remove(self)
        self.port.producers.discard(self)
        self.sock.close()
