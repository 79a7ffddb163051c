"""The acknowledged port: each connection is a named producer that learns how much of its stream is committed.

A producer sends its name, receives its ACKED and AT, sends its stream from byte ACKED on, and receives a further line
after each commit that holds bytes of it. The states of a connection, and the states that may follow each:

    NAME_AWAITED    the name line is incomplete                       COMMIT_AWAITED, STREAMING, FINISHING, CLOSED
    COMMIT_AWAITED  its predecessor's bytes are not committed yet     STREAMING, CLOSED
    STREAMING       greeted; its messages are read                    FINISHING, CLOSED
    FINISHING       nothing is read; its bytes are not committed yet  LINGERING, CLOSED
    LINGERING       the final line is sent; input is discarded        CLOSED
    CLOSED          the socket is closed                              -

A producer whose name has no bytes in flight skips COMMIT_AWAITED; one that has none itself passes through FINISHING at
once. LINGERING discards input because closing a socket with unread bytes resets it, and the final line would be lost.
"""

from __future__ import annotations

import socket
from enum import Enum
from typing import TYPE_CHECKING, Final

from collator.acks import Progress, note_run
from collator.batch_builder import Inbox
from collator.names import Names
from collator.port_events import PortEvents
from tailsrv_formats.acknowledgement import NAME_LINE_BYTES, InvalidNameError, error_line, read_name, run_lines
from tailsrv_formats.errors import reason
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.logs import printable
from tailsrv_runtime.reactor import READ, WRITE

if TYPE_CHECKING:
    from collator.batch_builder import Batch
    from collator.ingress import IngressScheduler
    from collator.journal import Standing
    from tailsrv_formats.framing import FramingError
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

REPLY_SECONDS: Final = 30.0
"""The time limit for a producer to send its name, and to receive its final line."""

UNREAD_BYTES: Final = 1 << 16
"""The acknowledgements in bytes that may wait for a producer to read them, in the kernel and again here. Beyond it, the
collator stops reading from that producer."""

DISCARD_BYTES: Final = 1 << 16


class State(Enum):
    """The state of a connection; the module's docstring has the table."""

    NAME_AWAITED = 0
    COMMIT_AWAITED = 1
    STREAMING = 2
    FINISHING = 3
    LINGERING = 4
    CLOSED = 5


TRANSITIONS: Final = {
    State.NAME_AWAITED: frozenset({State.COMMIT_AWAITED, State.STREAMING, State.FINISHING, State.CLOSED}),
    State.COMMIT_AWAITED: frozenset({State.STREAMING, State.CLOSED}),
    State.STREAMING: frozenset({State.FINISHING, State.CLOSED}),
    State.FINISHING: frozenset({State.LINGERING, State.CLOSED}),
    State.LINGERING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset[State](),
}
"""The states that may follow each state."""


class AckedPort:
    """The acknowledged port: its connections, the names that they use, and its counters."""

    def __init__(self, reactor: Reactor, scheduler: IngressScheduler, known: dict[bytes, Progress], log: Log) -> None:
        """`known`: the progress of each name in the journal; new names are added to it."""
        self._reactor = reactor
        self._scheduler = scheduler
        self._names = Names(reactor, known)
        self.events = PortEvents(log)
        self.connections: set[AckedProducer] = set()
        self._deadlines: Deadlines[AckedProducer] = Deadlines(
            reactor, REPLY_SECONDS, lambda late: late.expired(), lambda late: late.abort()
        )

    def connected(self, sock: socket.socket, peer: str) -> None:
        """Accept a connection, whose name line comes first."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        connection = AckedProducer(
            self,
            sock,
            peer,
            reactor=self._reactor,
            scheduler=self._scheduler,
            names=self._names,
            deadlines=self._deadlines,
            events=self.events,
        )
        # Registered first: when this fails for lack of memory, the acceptor closes the socket, whose number is reused.
        self._reactor.register(connection.fd, READ, connection.on_name, connection.abort)
        self.connections.add(connection)
        self._deadlines.start(connection)

    def closed(self, connection: AckedProducer) -> None:
        """Forget `connection`, whose socket is about to be closed."""
        self.connections.discard(connection)

    # --- commits

    def progressed(self, batch: Batch) -> list[Standing]:
        """The named producers that have bytes in `batch`, each with its ACKED and AT after that batch."""
        return [
            (producer.name, producer.progress, runs[-2], runs[-1])
            for producer, runs in batch.runs.items()
            if producer.name
        ]

    def committed(self, batch: Batch) -> None:
        """Acknowledge `batch` to every producer that has bytes in it."""
        waiting = self._names.waiting
        for producer, runs in batch.runs.items():
            progress = producer.progress
            progress.acked, progress.at = runs[-2], runs[-1]
            progress.in_flight -= 1
            try:
                producer.committed(runs)
            except Exception as error:  # noqa: BLE001 - contained, or raised again: the others are acknowledged all the same
                self._reactor.contain(error, producer.abort)
            if waiting and not progress.in_flight:
                successor = waiting.pop(progress, None)
                if successor is not None:
                    try:
                        successor.greet()
                    except Exception as error:  # noqa: BLE001 - the same
                        self._reactor.contain(error, successor.abort)

    def close(self) -> None:
        """Close all connections, and drop their incomplete messages."""
        for connection in tuple(self.connections):
            connection.close("stopped")


class AckedProducer:
    """One connection of the acknowledged port."""

    __slots__ = (
        "_deadlines", "_events", "_final_line", "_name_line", "_names", "_outgoing", "_port", "_reactor", "_reading",
        "_scheduler", "fd", "inbox", "name", "peer", "progress", "sock", "state",
    )  # fmt: skip

    def __init__(
        self,
        port: AckedPort,
        sock: socket.socket,
        peer: str,
        *,
        reactor: Reactor,
        scheduler: IngressScheduler,
        names: Names,
        deadlines: Deadlines[AckedProducer],
        events: PortEvents,
    ) -> None:
        self._port = port
        self._reactor = reactor
        self._scheduler = scheduler
        self._names = names
        self._deadlines = deadlines
        self._events = events
        self.peer = peer
        self.sock = sock
        self.fd = sock.fileno()
        self.inbox = Inbox()
        self.state = State.NAME_AWAITED
        self._name_line = b""
        """The part of the name line that has arrived."""
        self.name = b""
        self.progress = Progress()
        self._outgoing = b""
        """Lines that the socket has not accepted yet."""
        self._final_line: bytes | None = None
        """The error line to send last; None: the latest ACKED and AT once more."""
        self._reading = False
        """Whether the scheduler reads from it."""

    def _enter(self, state: State) -> None:
        """Change the state. Raises `RuntimeError` for a change that `TRANSITIONS` does not have."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a connection of the acknowledged port can't go from {self.state.name} to {state.name}")
        self.state = state

    # --- the name

    def on_name(self, _mask: int) -> None:
        """Read the name line and not a byte more: the scheduler reads the stream that follows it."""
        try:
            seen = self.sock.recv(NAME_LINE_BYTES - len(self._name_line), socket.MSG_PEEK)
            if seen:
                self._name_line += self.sock.recv(seen.find(b"\n") + 1 or len(seen))
        except BlockingIOError:
            return
        except OSError:
            self.close("reset")
            return
        try:
            name = read_name(self._name_line)
        except InvalidNameError as error:
            self._reject("name", str(error), name=printable(self._name_line))
            return
        if name is not None:
            self._named(name)
        elif not seen and not self._name_line:
            self.close("unfinished")
        elif not seen:
            self._reject("name", "the name line has no newline", name=printable(self._name_line))

    def _named(self, name: bytes) -> None:
        self._deadlines.cancel(self)
        self.name = name
        if name:
            self.progress = self._names.claim(self)
        self._reactor.unregister(self.fd)
        if self.progress.in_flight:
            self._enter(State.COMMIT_AWAITED)
            self._names.wait(self)
        else:
            self.greet()

    def greet(self) -> None:
        """Send ACKED and AT, and read the stream from there on."""
        self._enter(State.STREAMING)
        self._reading = True
        self._scheduler.add(self)
        self.send(self.progress.line())

    # --- streaming

    def on_ready(self, mask: int) -> None:
        """Read once, or send what waits."""
        if self._outgoing and mask & ~READ:
            self._flush()
        if self._reading and mask & ~WRITE and len(self._outgoing) < UNREAD_BYTES:
            self._scheduler.serve(self)

    def appended(self, batch: Batch, added: int) -> None:
        """Note the place in FILE of its bytes."""
        progress = self.progress
        runs = batch.runs.get(self)
        if runs is None:
            runs = batch.runs[self] = []
            progress.in_flight += 1
        progress.gathered += added
        end = batch.end
        note_run(runs, progress.gathered, end - added, end)

    def committed(self, runs: list[int]) -> None:
        """Acknowledge its bytes; close, if these were the last ones of a finished connection."""
        self.send(run_lines(runs))
        if self.state is State.FINISHING and not self.progress.in_flight:
            self.close_gracefully()

    def ended(self) -> None:
        """Finish after a half-close: the latest line is sent once more when all is committed."""
        self._drop("unfinished")
        self._finish()

    def lost(self, error: OSError) -> None:
        """Close after a reset; its whole messages are committed all the same."""
        self.close("reset", error=reason(error))

    def superseded(self, by: str) -> None:
        """Close because another connection uses its name."""
        self._events.producer_superseded(name=self.name.decode(), peer=self.peer, by=by)
        self.close("superseded")

    def misframed(self, error: FramingError) -> None:
        """Reject its stream: the error line follows the acknowledgement of all messages before it."""
        self._reject("misframed", str(error))

    def evicted(self, why: str) -> None:
        """Reject it because the buffer has no room for its incomplete message."""
        self._reject("no room", why)

    # --- finishing

    def expired(self) -> None:
        """Close after the time limit for the name or for the final line."""
        if self.state is State.NAME_AWAITED:
            self._reject("late", f"busy, no name within {REPLY_SECONDS:.0f} seconds")
        else:
            self.close("unfinished")

    def _reject(self, why: str, text: str, **facts: object) -> None:
        named = {"name": self.name.decode()} if self.name else {}
        self._events.producer_rejected(why, peer=self.peer, error=text, **named, **facts)
        self._final_line = error_line(text)
        self._drop(why)
        self._finish()

    def _finish(self) -> None:
        """Stop reading; close as soon as everything is committed."""
        self._stop_reading()
        self._enter(State.FINISHING)
        if not self.progress.in_flight:
            self.close_gracefully()

    def close_gracefully(self) -> None:
        """Send the final line, then wait for the producer to close."""
        self._enter(State.LINGERING)
        self._deadlines.start(self)
        self._reactor.unregister(self.fd)
        self._reactor.register(self.fd, self.interest(), self._on_lingering, self.abort)
        self.send(self._final_line if self._final_line is not None else self.progress.line())
        self._final_line_sent()

    def _on_lingering(self, mask: int) -> None:
        """Send what waits; then discard input until the producer closes."""
        if self._outgoing:
            if mask & ~READ:
                self._flush()
                self._final_line_sent()
            return
        try:
            if self.sock.recv(DISCARD_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # a reset ends it as well
        self.close("unfinished")

    def _final_line_sent(self) -> None:
        """After the final line: close, or half-close where the producer was rejected and may still be sending."""
        if self._outgoing or self.state is State.CLOSED:
            return
        if self._final_line is None:
            self.close("unfinished")
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close("reset")

    # --- its lines

    def send(self, lines: bytes) -> None:
        """Send lines after those that still wait."""
        if self.state is State.CLOSED:
            return
        if self._outgoing:
            self._outgoing += lines
            return
        try:
            sent = self.sock.send(lines)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close("reset", error=reason(error))
            return
        if sent < len(lines):
            self._outgoing = lines[sent:]
            self._watch()

    def _flush(self) -> None:
        waiting, self._outgoing = self._outgoing, b""
        self.send(waiting)
        if not self._outgoing:
            self._watch()

    def interest(self) -> int:
        """The events that it waits for."""
        if self.state is State.LINGERING:
            return WRITE if self._outgoing else READ
        return (WRITE if self._outgoing else 0) | (READ if len(self._outgoing) < UNREAD_BYTES else 0)

    def _watch(self) -> None:
        if self.state is State.STREAMING:
            self._scheduler.watch(self)
        elif self.state is State.LINGERING:
            self._reactor.modify(self.fd, self.interest())

    # --- its end

    def _drop(self, why: str, **facts: object) -> None:
        """Note that its incomplete message is dropped; the scheduler drops it when it stops reading."""
        partial = len(self.inbox.partial)
        if partial:
            self._events.message_dropped(why, peer=self.peer, name=self.name.decode(), bytes=partial, **facts)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._scheduler.remove(self)
        self._names.release(self)

    def abort(self) -> None:
        """Close after an unexpected error in the work for this producer."""
        self.close("failed")

    def close(self, why: str, **facts: object) -> None:
        """Close the connection now, and drop what is incomplete because of `why`."""
        if self.state is State.CLOSED:
            return
        self._drop(why, **facts)
        self._stop_reading()
        self._deadlines.cancel(self)
        self._reactor.unregister(self.fd)
        self._port.closed(self)
        self._names.forget(self)
        self._enter(State.CLOSED)
        self._outgoing = b""
        self.sock.close()
