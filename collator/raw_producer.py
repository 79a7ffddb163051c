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
"""After this much silence, a client is treated as what its first line looks like."""

NEWS: Final = READ | select.EPOLLRDHUP | select.EPOLLET
"""Reports further bytes or the end of the connection, not the bytes that already wait in the kernel."""


class RawPort:
    """The raw port: its connections and its counters."""

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
        """`check`: whether the port recognises clients of other ports."""
        self.reactor = reactor
        self.ingress = ingress
        self.builder = builder
        self.framing = framing
        self.counts = Counts()
        self._check = check
        self.producers: set[RawProducer] = set()
        self.first: set[RawProducer] = set()
        """The connections whose first bytes are not classified yet."""
        self.deadlines: Deadlines[RawProducer] = Deadlines(
            reactor, HOLD_SECONDS, lambda held: held.expired(), lambda held: held.abort()
        )
        self.log_dropped = Repeated(log.info, "incomplete message dropped")
        self.log_completed = Repeated(log.info, "last message completed")
        self.log_closed = Repeated(log.warning, "producer disconnected")
        self.log_wrong = Repeated(log.warning, "client of another port disconnected")

    def connected(self, sock: socket.socket, peer: str) -> None:
        """Accept a connection."""
        producer = RawProducer(self, sock, peer)
        # Registered first: when this fails for lack of memory, the acceptor closes the socket.
        if self._check:
            self.reactor.register(producer.fd, READ, producer.on_first, producer.abort)
            self.first.add(producer)
        else:
            self.ingress.add(producer)
        self.producers.add(producer)

    def release(self) -> None:
        """Treat all held connections as producers: the collator stops, and their messages must not be lost."""
        for producer in tuple(self.first):
            producer.on_first(select.EPOLLRDHUP)

    def close(self) -> None:
        """Close all connections, and drop their incomplete messages."""
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
        """The number of first bytes that are still in the kernel."""

    # --- its first bytes

    def on_first(self, mask: int) -> None:
        """Classify the first bytes, which stay in the kernel."""
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
            self._begin()  # a producer may send one line and end; a misdirected client waits for an answer
        elif wrong is not None or (may_become(first) and not port.framing.reach(first, 0, len(first))):
            self._hold(wrong)
        else:
            self._begin()

    def _hold(self, wrong: WrongClient | None) -> None:
        """Leave the bytes in the kernel until more arrive. An incomplete line has no time limit."""
        port = self.port
        if wrong is not None:
            port.deadlines.start(self)
        else:
            port.deadlines.cancel(self)
        if not self._held:
            self._held = True
            port.reactor.modify(
                self.fd, NEWS
            )  # epoll checks the socket again here, so bytes that came meanwhile are reported

    def _begin(self) -> None:
        """Read its messages from now on: it is a producer."""
        port = self.port
        self._seen = 0
        self._unregister_first()
        port.ingress.add(self)
        port.ingress.serve(self)

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
        port = self.port
        port.counts.rejected["wrong port"] += 1
        port.log_wrong(
            peer=self.peer,
            sent=printable(first),
            looks_like=wrong.looks_like,
            wanted=wrong.wanted,
            advice="the collator appended nothing; --accept-any-message accepts such lines as messages",
        )
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._seen = 0
        self.close("wrong port")

    def _unregister_first(self) -> None:
        if self in self.port.first:
            self.port.first.discard(self)
            self.port.deadlines.cancel(self)
            self.port.reactor.unregister(self.fd)

    # --- its messages

    def on_ready(self, _mask: int) -> None:
        """Read once."""
        self.port.ingress.serve(self)

    def interest(self) -> int:
        """The events that it waits for."""
        return READ

    def appended(self, added: int) -> None:
        """Do nothing: raw producers receive no acknowledgement."""

    def ended(self) -> None:
        """Complete its last message where the framing can."""
        if self.port.ingress.complete(self):
            self.port.counts.completed += 1
            self.port.log_completed(peer=self.peer)
        self.close("unfinished")

    def lost(self, error: OSError) -> None:
        """Close after a reset; the incomplete message is dropped."""
        self.close("reset", error=reason(error))

    def misframed(self, error: FramingError) -> None:
        """Close the connection: no boundary can be found after this point."""
        self.port.counts.rejected["misframed"] += 1
        self.port.log_closed(peer=self.peer, error=str(error))
        self.close("misframed")

    def evicted(self, why: str) -> None:
        """Close the connection because the buffer has no room for its incomplete message."""
        self.port.counts.rejected["no room"] += 1
        self.port.log_closed(peer=self.peer, error=why)
        self.close("no room")

    # --- its end

    def abort(self) -> None:
        """Close after an unexpected error in the work for this producer."""
        self.close("failed")

    def close(self, why: str, **facts: object) -> None:
        """Close the connection and drop what is incomplete, because of `why`."""
        partial = len(self.inbox.partial) or self._seen
        if partial:
            self.port.counts.dropped[why] += 1
            self.port.log_dropped(peer=self.peer, bytes=partial, reason=why, **facts)
        self._unregister_first()
        self.port.ingress.remove(self)
        self.port.producers.discard(self)
        self.sock.close()
