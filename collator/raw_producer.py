"""The raw port: a producer sends messages, and the collator sends nothing back.

A clean end of the connection completes the last message where the framing has a terminator; any other end drops it.

The port recognises a client of another port by its first bytes (wrongclient.py), so that its line does not become a
message. Until then these bytes stay in the kernel: they need no memory here, and a producer pays nothing for the check
afterwards. A connection goes through:

    first → sending     its first bytes are a producer's: at once, in nearly all cases
    first → held        they are exactly a header or a name line; after more bytes or the end: → sending; after
                        `HOLD_SECONDS` of silence: the connection is reset
    first → closed      they are an HTTP request
"""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from collator.batch_builder import Inbox
from collator.port_events import PortEvents
from collator.wrongclient import FIRST_BYTES, may_become, recognise
from tailsrv_formats.errors import reason
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.logs import printable
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    from collator.batch_builder import Batch
    from collator.ingress import IngressScheduler
    from collator.wrongclient import WrongClient
    from tailsrv_formats.framing import Framing, FramingError
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

HOLD_SECONDS: Final = 1.0
"""After this much silence, a client is treated as what its first line looks like."""

NEWS: Final = READ | select.EPOLLRDHUP | select.EPOLLET
"""Reports further bytes or the end of the connection, not the bytes that already wait in the kernel."""


class RawPort:
    """The raw port: its connections and its counters."""

    def __init__(
        self, reactor: Reactor, scheduler: IngressScheduler, framing: Framing, log: Log, *, check: bool
    ) -> None:
        """`check`: whether the port recognises clients of other ports."""
        self._reactor = reactor
        self._scheduler = scheduler
        self._framing = framing
        self._check = check
        self.events = PortEvents(log)
        self.producers: set[RawProducer] = set()
        self._first: set[RawProducer] = set()
        """The connections whose first bytes are not classified yet."""
        self._deadlines: Deadlines[RawProducer] = Deadlines(
            reactor, HOLD_SECONDS, lambda held: held.expired(), lambda held: held.abort()
        )

    def connected(self, sock: socket.socket, peer: str) -> None:
        """Accept a connection."""
        producer = RawProducer(self, sock, peer, reactor=self._reactor, scheduler=self._scheduler, events=self.events)
        # Registered first: when this fails for lack of memory, the acceptor closes the socket.
        if self._check:
            self._reactor.register(producer.fd, READ, producer.on_first, producer.abort)
            self._first.add(producer)
        else:
            self._scheduler.add(producer)
        self.producers.add(producer)

    def holds_message(self, first: bytes) -> bool:
        """Whether these bytes contain a whole message."""
        return self._framing.reach(first, 0, len(first)) > 0

    def hold(self, producer: RawProducer, *, timed: bool) -> None:
        """Wait for more bytes of `producer`; `timed`: for `HOLD_SECONDS`, then call ``producer.expired()``."""
        if timed:
            self._deadlines.start(producer)
        else:
            self._deadlines.cancel(producer)

    def classified(self, producer: RawProducer) -> None:
        """Unregister `producer` from the loop, if its first bytes were still to be classified."""
        if producer in self._first:
            self._first.discard(producer)
            self._deadlines.cancel(producer)
            self._reactor.unregister(producer.fd)

    def release(self) -> None:
        """Treat all held connections as producers: the collator stops, and their messages must not be lost."""
        for producer in tuple(self._first):
            try:
                producer.on_first(select.EPOLLRDHUP)
            except Exception as error:  # noqa: BLE001 - contained, or raised again: the others are released all the same
                self._reactor.contain(error, producer.abort)

    def closed(self, producer: RawProducer) -> None:
        """Forget `producer`, whose socket is about to be closed."""
        self.classified(producer)
        self._scheduler.remove(producer)
        self.producers.discard(producer)

    def close(self) -> None:
        """Close all connections, and drop their incomplete messages."""
        for producer in tuple(self.producers):
            producer.close("stopped")


class RawProducer:
    """One connection of the raw port."""

    __slots__ = ("_events", "_held", "_peer", "_port", "_reactor", "_scheduler", "_seen", "fd", "inbox", "sock")

    def __init__(
        self,
        port: RawPort,
        sock: socket.socket,
        peer: str,
        *,
        reactor: Reactor,
        scheduler: IngressScheduler,
        events: PortEvents,
    ) -> None:
        self._port = port
        self._reactor = reactor
        self._scheduler = scheduler
        self._events = events
        self._peer = peer
        self.sock = sock
        self.fd = sock.fileno()
        self.inbox = Inbox()
        self._held = False
        self._seen = 0
        """The number of first bytes that are still in the kernel."""

    # --- its first bytes

    def on_first(self, mask: int) -> None:
        """Classify the first bytes, which stay in the kernel."""
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
            self._begin()  # a producer may send one line and end; a misdirected client waits for an answer
        elif wrong is not None or (may_become(first) and not self._port.holds_message(first)):
            self._hold(wrong)
        else:
            self._begin()

    def _hold(self, wrong: WrongClient | None) -> None:
        """Leave the bytes in the kernel until more arrive. An incomplete line has no time limit."""
        self._port.hold(self, timed=wrong is not None)
        if not self._held:
            self._held = True
            self._reactor.modify(self.fd, NEWS)  # epoll checks the socket again here: it reports bytes that have come

    def _begin(self) -> None:
        """Read its messages from now on: it is a producer."""
        self._seen = 0
        self._port.classified(self)
        self._scheduler.add(self)
        self._scheduler.serve(self)

    def expired(self) -> None:
        """Reject the client after the silence, unless bytes or the end have arrived at this moment."""
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
        self._events.client_misdirected(
            peer=self._peer,
            sent=printable(first),
            looks_like=wrong.looks_like,
            wanted=wrong.wanted,
            advice="the collator appended nothing; --accept-any-message accepts such lines as messages",
        )
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._seen = 0
        self.close("wrong port")

    # --- its messages

    def on_ready(self, _mask: int) -> None:
        """Read once."""
        self._scheduler.serve(self)

    def interest(self) -> int:
        """The events that it waits for."""
        return READ

    def appended(self, batch: Batch, added: int) -> None:
        """Do nothing: raw producers receive no acknowledgement."""

    def ended(self) -> None:
        """Complete its last message where the framing can."""
        if self._scheduler.complete(self):
            self._events.message_completed(peer=self._peer)
        self.close("unfinished")

    def lost(self, error: OSError) -> None:
        """Close after a reset; the incomplete message is dropped."""
        self.close("reset", error=reason(error))

    def misframed(self, error: FramingError) -> None:
        """Close the connection: no boundary can be found after this point."""
        self._events.producer_rejected("misframed", peer=self._peer, error=str(error))
        self.close("misframed")

    def evicted(self, why: str) -> None:
        """Close the connection because the buffer has no room for its incomplete message."""
        self._events.producer_rejected("no room", peer=self._peer, error=why)
        self.close("no room")

    # --- its end

    def abort(self) -> None:
        """Close after an unexpected error in the work for this producer."""
        self.close("failed")

    def close(self, why: str, **facts: object) -> None:
        """Close the connection and drop what is incomplete, because of `why`."""
        partial = len(self.inbox.partial) or self._seen
        if partial:
            self._events.message_dropped(why, peer=self._peer, bytes=partial, **facts)
        self._port.closed(self)
        self.sock.close()
