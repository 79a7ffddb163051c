"""Who may deliver, and when.

A connection that is ready gets one bounded receive a round. When there is no room for it, or nothing can be written,
it is parked: taken off the loop, so that it costs nothing, and served before everybody else when there is room again,
in the order of parking. Nothing is read that can't be held.

Where the machine has no memory for more, reading from everybody is paused until there is some. A message that can't
grow for want of memory closes its producer.

When all room is taken by incomplete messages, the connection has to go whose message has made no progress for longest
(partials.py). Nobody has to go who has made some within `GRACE_SECONDS`: a burst of new connections waits instead, and
does not push out those that are in the middle of a message.

What all producers share (the batch that is gathered, the commit) must never go on half changed: whatever goes wrong
there unexpectedly ends the daemon, and the next start recovers. What goes wrong elsewhere closes one producer.
"""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from collator.batch_builder import NoMemoryError
from collator.partials import Partials
from tailsrv_formats.errors import UsageError
from tailsrv_formats.framing import FramingError
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import RETRY_SECONDS, Retried

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from collator.batch_builder import BatchBuilder, Inbox
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

DRAIN_QUANTA: Final = 64
"""How many turns a producer gets at the end: who never stops sending is cut off somewhere."""


GRACE_SECONDS: Final = 0.1


class Counts:
    """What became of connections and messages, by reason."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = dict.fromkeys(
            ("reset", "unfinished", "misframed", "superseded", "no room", "wrong port", "stopped", "failed"), 0
        )
        """Incomplete messages that were dropped."""
        self.rejected: dict[str, int] = dict.fromkeys(
            ("misframed", "name", "superseded", "no room", "late", "wrong port"), 0
        )
        """Connections that the collator closed."""
        self.completed = 0
        """Last messages that got their terminator here."""


class Producer(Protocol):
    """A connection that delivers messages."""

    sock: socket.socket
    fd: int
    inbox: Inbox

    def on_ready(self, mask: int) -> None:
        """The loop's handler."""

    def interest(self) -> int:
        """Which events it wants."""

    def appended(self, added: int) -> None:
        """So many bytes of its messages have just joined the end of the batch."""

    def ended(self) -> None:
        """It has sent all it will send, and said so (FIN)."""

    def lost(self, error: OSError) -> None:
        """It is gone without saying so."""

    def misframed(self, error: FramingError) -> None:
        """What it sends can't be a message; what came before has been delivered."""

    def evicted(self, why: str) -> None:
        """There is no room for its incomplete message."""

    def abort(self) -> None:
        """Something unexpected went wrong in the work for it: close it."""


class IngressScheduler:
    """Takes turns among the sources."""

    def __init__(
        self, reactor: Reactor, builder: BatchBuilder, log: Log, *, commit: Callable[[], bool], busy: Callable[[], bool]
    ) -> None:
        """``commit()`` begins to commit what is gathered and returns whether it could. ``busy()``: one is under way."""
        self._reactor = reactor
        self._gatherer = builder
        self._commit = commit
        self._busy = busy
        self._parked: OrderedDict[Producer, None] = OrderedDict()
        """Those that wait for room, in the order in which they get their turn."""
        self.closed = False
        """Whether nothing is read at present, room or not."""
        self.sources: set[Producer] = set()
        self._partials: Partials[Producer] = Partials()
        self._grace = GRACE_SECONDS
        self._grace_timer: Timer | None = None
        self._memory = Retried(reactor, log, "reading from producers", builder.reserve)
        self._memory_timer: Timer | None = None
        self._draining: dict[Producer, int] = {}

    def add(self, source: Producer) -> None:
        """Serve `source` from now on."""
        self._register(source)
        self.sources.add(source)

    def remove(self, source: Producer) -> None:
        """Serve it no more, before its socket is closed. Its incomplete message is forgotten."""
        self.sources.discard(source)
        self._parked.pop(source, None)
        self._reactor.unregister(source.fd)
        self._gatherer.drop(source.inbox)
        self._partials.forget(source)

    def serve(self, source: Producer) -> None:
        """`source` is ready: receive what it has, once."""
        if self.closed or self._parked:
            self._park(source)
            return
        self._receive(source)

    def resume(self) -> None:
        """There may be room: let those who were parked have their turn."""
        parked = self._parked
        for _ in range(len(parked)):
            if self.closed or not parked:
                return
            source = next(iter(parked))
            if self._receive_contained(source) is None:
                return
            parked.pop(source, None)
            if source in self.sources:  # it may have been closed by what its turn led to
                try:
                    self._register(source)
                except OSError as error:  # no memory, or fs.epoll.max_user_watches: this one can't be served
                    source.lost(error)

    def watch(self, source: Producer) -> None:
        """Its interest has changed."""
        if source not in self._parked:
            self._reactor.modify(source.fd, source.interest())

    def begin_drain(self) -> None:
        """The end comes: everybody who is here now is drained, and nobody else is read from."""
        self._draining = dict.fromkeys(self.sources, DRAIN_QUANTA)
        self._grace = 0.0

    def drain(self) -> bool:
        """Take in what the kernel still holds for everybody: what was sent and forgotten is there.

        False when room has to be made by a commit before there is more; then it is to be called again.
        """
        draining = self._draining
        for source in tuple(draining):
            while source in self.sources and draining[source] > 0:
                draining[source] -= 1
                received = self._receive_contained(source)
                if received is None:
                    return False
                if not received:
                    break
            del draining[source]
        return True

    @property
    def waits(self) -> bool:
        """Whether there was no memory a moment ago: there is a round in which it is asked for again."""
        return self._memory_timer is not None

    @property
    def paused(self) -> str | None:
        """Why nothing is read for want of memory, for health checks."""
        return self._memory.paused

    @property
    def crowded(self) -> bool:
        """Whether somebody is parked."""
        return bool(self._parked)

    def _register(self, source: Producer) -> None:
        self._reactor.register(source.fd, source.interest(), source.on_ready, source.abort)

    def _receive(self, source: Producer, *, parked: bool = False) -> bool | None:
        """Receive from `source`, once: whether there may be more. Without room it is parked, and None returned."""
        try:
            space = self._space(source)
        except (FatalError, UsageError):
            raise
        except Exception as error:
            raise _shared(error) from error
        if source not in self.sources:
            return False  # it was the one that had to go
        if space is None:
            if not parked:
                self._park(source)
            return None
        try:
            count = source.sock.recv_into(space)
        except BlockingIOError:
            return False
        except OSError as error:
            source.lost(error)
            return False
        if not count:
            source.ended()
            return False
        self._take_in(source, count)
        return True

    def _receive_contained(self, source: Producer) -> bool | None:
        """The same, not in the loop's handler of `source`, but for others too: its errors are its own."""
        try:
            return self._receive(source, parked=True)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._reactor.contain(error, source.abort)
            return False

    def complete(self, source: Producer) -> bool:
        """It ended cleanly: complete its last message where the framing can; whether that was done."""
        try:
            return self._gatherer.finish(source.inbox) > 0
        except Exception as error:
            raise _shared(error) from error

    def _space(self, source: Producer) -> memoryview | None:
        try:
            space = self._gatherer.space(source.inbox)
            while space is None and self._make_room() and source in self.sources:
                space = self._gatherer.space(source.inbox)
        except MemoryError:
            self._wait_for_memory()
            return None
        return space

    def _wait_for_memory(self) -> None:
        self._commit()  # what it holds comes free
        self._memory()
        if self._memory_timer is None:  # the round that it begins lets the parked ones ask again
            self._memory_timer = self._reactor.call_later(RETRY_SECONDS, self._memory_waited)

    def _memory_waited(self) -> None:
        self._memory_timer = None

    def _take_in(self, source: Producer, count: int) -> None:
        batch = self._gatherer.batch
        before = batch.size
        wrong: FramingError | NoMemoryError | None = None
        try:
            try:
                self._gatherer.received(source.inbox, count)
            except (FramingError, NoMemoryError) as error:
                wrong = error
            added = batch.size - before
            if added:
                source.appended(added)
        except Exception as error:
            raise _shared(error) from error
        inbox = source.inbox
        if inbox.partial or inbox.noted:
            self._partials.note(source, completed=added > 0)
        if isinstance(wrong, FramingError):
            source.misframed(wrong)
        elif wrong is not None:
            source.evicted(f"busy, no memory for this message ({len(inbox.partial)} bytes of it are dropped)")

    def _make_room(self) -> bool:
        """Commit, or close who has made no progress for longest: whether it is worth asking for space again."""
        if self._commit():
            return True
        if self._busy():
            return False
        found = self._partials.oldest()
        if found is None:
            return False
        oldest, since = found
        wait = since + self._grace - time.monotonic()
        if wait > 0:
            if self._grace_timer is None:  # the round that it begins lets the parked ones ask again
                self._grace_timer = self._reactor.call_later(wait, self._grace_over)
            return False
        try:
            oldest.evicted(
                "busy, --buffer-bytes is full of incomplete messages, and this one has made no progress for longest"
                f" ({len(oldest.inbox.partial)} bytes)"
            )
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._reactor.contain(error, oldest.abort)
        return True

    def _grace_over(self) -> None:
        self._grace_timer = None

    def _park(self, source: Producer) -> None:
        self._reactor.unregister(source.fd)
        if source.inbox.noted:
            waiting = fcntl.ioctl(source.fd, termios.FIONREAD, bytes(4))
            self._partials.excuse(source, int.from_bytes(waiting, sys.byteorder))
        self._parked[source] = None


def _shared(error: Exception) -> FatalError:
    """The error for one that left what all producers share half changed."""
    return FatalError(
        f"unexpected error while gathering a batch: {error!r}; nothing more is acknowledged; start the collator again"
        " (the next start recovers), and report this bug"
    )
