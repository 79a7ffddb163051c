"""The acknowledged lane: producers who are told.

A producer says its name, hears how far its stream has come, goes on from there, and hears again after every commit that
holds some of it.

A connection goes through: naming → waiting (a predecessor of its name has bytes under way) → streaming → leaving (its
last bytes are being committed) → lingering (it was told why; what it still sends is thrown away, so that the line
reaches it and no reset does).
"""

from __future__ import annotations

import socket
from enum import Enum
from typing import TYPE_CHECKING, Final

from collator.acks import Progress, note_run
from collator.batch_builder import Inbox
from collator.ingress import Counts
from tailsrv_formats.acknowledgement import NAME_LINE_BYTES, InvalidNameError, error_line, read_name, run_lines
from tailsrv_formats.errors import reason
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.logs import Repeated, printable
from tailsrv_runtime.reactor import READ, WRITE

if TYPE_CHECKING:
    from collator.batch_builder import Batch, BatchBuilder
    from collator.ingress import IngressScheduler
    from tailsrv_formats.framing import FramingError
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

REPLY_SECONDS: Final = 30.0
"""How long a producer has to say its name, and to take its last line."""

UNREAD_BYTES: Final = 1 << 16
"""So many bytes of acknowledgements may wait for a producer to read them, in the kernel and again here; then it is not
read from either."""

DISCARD_BYTES: Final = 1 << 16


class State(Enum):
    """Where a connection of the acknowledged lane is; see above."""

    NAMING = 0
    WAITING = 1
    STREAMING = 2
    FINISHING = 3
    LINGERING = 4
    CLOSED = 5


class AckedPort:
    """Producers who are told."""

    def __init__(
        self, reactor: Reactor, ingress: IngressScheduler, builder: BatchBuilder, known: dict[bytes, Progress], log: Log
    ) -> None:
        """`known`: every named producer that there ever was."""
        self.reactor = reactor
        self.ingress = ingress
        self.builder = builder
        self.known = known
        self.counts = Counts()
        self.connections: set[AckedProducer] = set()
        self.streaming: dict[bytes, AckedProducer] = {}
        """Who speaks for a name."""
        self.waiting: dict[Progress, AckedProducer] = {}
        self.deadlines: Deadlines[AckedProducer] = Deadlines(
            reactor, REPLY_SECONDS, lambda late: late.expired(), lambda late: late.abort()
        )
        self.log_dropped = Repeated(log.info, "incomplete message dropped")
        self.log_closed = Repeated(log.warning, "producer closed")
        self.log_superseded = Repeated(log.info, "producer superseded")

    def connected(self, sock: socket.socket, peer: str) -> None:
        """A producer came; its name comes next."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        connection = AckedProducer(self, sock, peer)
        # First, because it may fail for want of memory: the socket is closed then, and its number another connection's.
        self.reactor.register(connection.fd, READ, connection.on_name, connection.abort)
        self.connections.add(connection)
        self.deadlines.start(connection)

    def progressed(self, batch: Batch) -> list[tuple[bytes, Progress, int, int]]:
        """The named producers that have bytes in `batch`, which is about to be committed, and how far it takes them."""
        moved = []
        for producer, runs in batch.runs.items():
            assert isinstance(producer, AckedProducer)  # noqa: S101 - for the type checker: nobody else writes there
            if producer.name:
                moved.append((producer.name, producer.progress, runs[-2], runs[-1]))
        return moved

    def committed(self, batch: Batch) -> None:
        """Tell everybody who has bytes in `batch`."""
        for producer, runs in batch.runs.items():
            assert isinstance(producer, AckedProducer)  # noqa: S101 - as above
            progress = producer.progress
            progress.acked, progress.at = runs[-2], runs[-1]
            progress.in_flight -= 1
            try:
                producer.committed(runs)
            except Exception as error:  # noqa: BLE001 - contained, or raised again: the others are told all the same
                self.reactor.contain(error, producer.abort)
            if not progress.in_flight:
                successor = self.waiting.pop(progress, None) if self.waiting else None
                if successor is not None:
                    try:
                        successor.greet()
                    except Exception as error:  # noqa: BLE001 - the same
                        self.reactor.contain(error, successor.abort)

    def close(self) -> None:
        """Close all connections; what is incomplete is dropped."""
        for connection in tuple(self.connections):
            connection.close("stopped")


class AckedProducer:
    """One connection of the acknowledged port."""

    __slots__ = (
        "fd",
        "final_line",
        "inbox",
        "name",
        "outgoing",
        "peer",
        "port",
        "progress",
        "reading",
        "sock",
        "state",
        "typed",
    )  # fmt: skip

    def __init__(self, port: AckedPort, sock: socket.socket, peer: str) -> None:
        self.port = port
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.inbox = Inbox()
        self.state = State.NAMING
        self.typed = b""
        """Of the name line, what has come so far."""
        self.name = b""
        self.progress = Progress()
        self.outgoing = b""
        """Lines that the socket did not take."""
        self.final_line: bytes | None = None
        """The error line to leave with; None: the last line once more."""
        self.reading = False
        """Whether the ingress serves it."""

    # --- naming

    def on_name(self, _mask: int) -> None:
        """Take the name line, and not a byte more: the stream is the intake's."""
        try:
            seen = self.sock.recv(NAME_LINE_BYTES - len(self.typed), socket.MSG_PEEK)
            if seen:
                self.typed += self.sock.recv(seen.find(b"\n") + 1 or len(seen))
        except BlockingIOError:
            return
        except OSError:
            self.close("reset")
            return
        try:
            name = read_name(self.typed)
        except InvalidNameError as error:
            self._reject("name", str(error), name=printable(self.typed))
            return
        if name is not None:
            self._named(name)
        elif not seen and not self.typed:
            self.close("unfinished")
        elif not seen:
            self._reject("name", "the name line has no end", name=printable(self.typed))

    def _named(self, name: bytes) -> None:
        port = self.port
        port.deadlines.cancel(self)
        self.name = name
        if name:
            self._supersede()
        port.reactor.unregister(self.fd)
        if self.progress.in_flight:
            self.state = State.WAITING
            port.waiting[self.progress] = self
        else:
            self.greet()

    def _supersede(self) -> None:
        """Take over from whoever has the name: a producer that lost its connection may know before we do."""
        port, name = self.port, self.name
        predecessor = port.streaming.get(name)
        if predecessor is not None:
            port.counts.rejected["superseded"] += 1
            port.log_superseded(name=name.decode(), peer=predecessor.peer, by=self.peer)
            predecessor.close("superseded")
        progress = port.known.get(name)
        if progress is None:
            progress = port.known[name] = Progress()
        self.progress = progress
        port.streaming[name] = self

    def greet(self) -> None:
        """Say how far its stream is, and go on from there."""
        self.state = State.STREAMING
        self.reading = True
        self.port.ingress.add(self)
        self.send(self.progress.line())

    # --- streaming

    def on_ready(self, mask: int) -> None:
        """Take a turn, or send on."""
        if self.outgoing and mask & ~READ:
            self._flush()
        if self.reading and mask & ~WRITE and len(self.outgoing) < UNREAD_BYTES:
            self.port.ingress.serve(self)

    def appended(self, added: int) -> None:
        """Note where its bytes stand."""
        batch, progress = self.port.builder.batch, self.progress
        runs = batch.runs.get(self)
        if runs is None:
            runs = batch.runs[self] = []
            progress.in_flight += 1
        progress.gathered += added
        note_run(runs, progress.gathered, batch.end - added, batch.end)

    def committed(self, runs: list[int]) -> None:
        """Say how far it is now; leave, if that was all that it waited for."""
        self.send(run_lines(runs))
        if self.state is State.FINISHING and not self.progress.in_flight:
            self.close_gracefully()

    def ended(self) -> None:
        """Half-closed: it hears the last line once more when all is committed. An incomplete message is dropped."""
        self._drop("unfinished")
        self._part()

    def lost(self, error: OSError) -> None:
        """Gone; what it delivered is committed all the same."""
        self.close("reset", error=reason(error))

    def misframed(self, error: FramingError) -> None:
        """Tell it why, once what came before is committed."""
        self._reject("misframed", str(error))

    def evicted(self, why: str) -> None:
        """There is no room for its incomplete message."""
        self._reject("no room", why)

    # --- leaving

    def expired(self) -> None:
        """It took too long to say its name, or to take its last line."""
        if self.state is State.NAMING:
            self._reject("late", f"busy, no name within {REPLY_SECONDS:.0f} seconds")
        else:
            self.close("unfinished")

    def _reject(self, why: str, text: str, **facts: object) -> None:
        self.port.counts.rejected[why] += 1
        self.port.log_closed(peer=self.peer, error=text, **({"name": self.name.decode()} if self.name else {}), **facts)
        self.final_line = error_line(text)
        self._drop(why)
        self._part()

    def _part(self) -> None:
        """Read nothing more; leave as soon as everything is committed."""
        self._stop_reading()
        self.state = State.FINISHING
        if not self.progress.in_flight:
            self.close_gracefully()

    def close_gracefully(self) -> None:
        """Say the last words."""
        self.state = State.LINGERING
        self.port.deadlines.start(self)
        self.port.reactor.unregister(self.fd)
        self.port.reactor.register(self.fd, self.interest(), self._on_lingering, self.abort)
        self.send(self.final_line if self.final_line is not None else self.progress.line())
        self._said()

    def _on_lingering(self, mask: int) -> None:
        """Send on; then wait for its end, throwing away what it still sends."""
        if self.outgoing:
            if mask & ~READ:
                self._flush()
                self._said()
            return
        try:
            if self.sock.recv(DISCARD_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # gone, too
        self.close("unfinished")

    def _said(self) -> None:
        """If everything is sent: who ended by itself is done; who was rejected may still be sending."""
        if self.outgoing or self.state is State.CLOSED:
            return
        if self.final_line is None:
            self.close("unfinished")
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close("reset")

    # --- its lines

    def send(self, lines: bytes) -> None:
        """Send lines, behind those that still wait."""
        if self.state is State.CLOSED:
            return
        if self.outgoing:
            self.outgoing += lines
            return
        try:
            sent = self.sock.send(lines)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close("reset", error=reason(error))
            return
        if sent < len(lines):
            self.outgoing = lines[sent:]
            self._watch()

    def _flush(self) -> None:
        waiting, self.outgoing = self.outgoing, b""
        self.send(waiting)
        if not self.outgoing:
            self._watch()

    def interest(self) -> int:
        """Which events it waits for."""
        if self.state is State.LINGERING:
            return WRITE if self.outgoing else READ
        return (WRITE if self.outgoing else 0) | (READ if len(self.outgoing) < UNREAD_BYTES else 0)

    def _watch(self) -> None:
        if self.state is State.STREAMING:
            self.port.ingress.watch(self)
        elif self.state is State.LINGERING:
            self.port.reactor.modify(self.fd, self.interest())

    # --- its end

    def _drop(self, why: str, **facts: object) -> None:
        partial = len(self.inbox.partial)
        if partial:
            self.port.counts.dropped[why] += 1
            self.port.log_dropped(peer=self.peer, name=self.name.decode(), bytes=partial, reason=why, **facts)
            self.port.builder.drop(self.inbox)

    def _stop_reading(self) -> None:
        if self.reading:
            self.reading = False
            self.port.ingress.remove(self)
        if self.name and self.port.streaming.get(self.name) is self:
            del self.port.streaming[self.name]

    def abort(self) -> None:
        """Something unexpected went wrong in the work for it."""
        self.close("failed")

    def close(self, why: str, **facts: object) -> None:
        """Close the connection now, and drop what is incomplete because of `why`."""
        if self.state is State.CLOSED:
            return
        port = self.port
        self._drop(why, **facts)
        self._stop_reading()
        port.deadlines.cancel(self)
        port.reactor.unregister(self.fd)
        port.connections.discard(self)
        if port.waiting.get(self.progress) is self:
            del port.waiting[self.progress]
        if self.name and not self.progress.gathered and self.name not in port.streaming:
            port.known.pop(self.name, None)  # who never delivered a message is nobody
        self.state = State.CLOSED
        self.outgoing = b""
        self.sock.close()
