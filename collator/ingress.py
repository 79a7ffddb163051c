"""Which producer is read from, and when.

A ready connection is read from once a round, up to the read quantum (batch_builder.py). When the buffer is full, or
nothing can be written, the connection is parked: it is taken off the loop, so that it costs nothing. Parked
connections are read from before all others as soon as there is room, in the order of parking. The scheduler reads
nothing that the buffer cannot hold.

When the machine is out of memory, all reading pauses until there is some. A message that cannot grow for lack of memory
closes its producer.

When incomplete messages fill the buffer, the scheduler closes the connection whose message has made no progress for
longest (partials.py), but none that has made some within `GRACE_SECONDS`: a burst of new connections waits instead of
pushing out connections in the middle of a message.

All producers share the batch and the commit. An unexpected error while they are being changed ends the daemon, and the
next start recovers: a half changed batch must never be committed. Any other unexpected error closes one producer.
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

    from collator.batch_builder import Batch, BatchBuilder, Inbox
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

DRAIN_QUANTA: Final = 64
"""How often each producer is read from during a stop: a producer that never stops sending must not prevent it."""

GRACE_SECONDS: Final = 0.1
"""A connection whose incomplete message has made progress within this time is not closed to make room."""


class Producer(Protocol):
    """A connection that sends messages."""

    sock: socket.socket
    fd: int
    inbox: Inbox

    def on_ready(self, mask: int) -> None:
        """Handle an event of the loop."""

    def interest(self) -> int:
        """The events that it waits for."""

    def appended(self, batch: Batch, added: int) -> None:
        """Note that the last `added` bytes of `batch` are its messages."""

    def ended(self) -> None:
        """Handle a FIN."""

    def lost(self, error: OSError) -> None:
        """Handle a reset, or another error of its socket."""

    def misframed(self, error: FramingError) -> None:
        """Handle invalid framing; the messages before it are in the batch."""

    def evicted(self, why: str) -> None:
        """Handle that its incomplete message has to go to make room."""

    def abort(self) -> None:
        """Close it after an unexpected error in the work for it."""


class IngressScheduler:
    """Reads from the producers in turn, into the batch."""

    def __init__(
        self, reactor: Reactor, builder: BatchBuilder, log: Log, *, commit: Callable[[], bool], busy: Callable[[], bool]
    ) -> None:
        """``commit()`` tries to begin a commit, and returns whether it did. ``busy()``: whether one is under way."""
        self._reactor = reactor
        self._builder = builder
        self._commit = commit
        self._busy = busy
        self._parked: OrderedDict[Producer, None] = OrderedDict()
        """The producers that wait for room, in the order in which they are read from."""
        self.closed = False
        """Whether nothing is read at present, room or not."""
        self.producers: set[Producer] = set()
        self._partials: Partials[Producer] = Partials()
        self._grace = GRACE_SECONDS
        self._grace_timer: Timer | None = None
        self._memory = Retried(reactor, log, "reading from producers", builder.reserve)
        self._memory_timer: Timer | None = None
        self._draining: dict[Producer, int] = {}

    def add(self, producer: Producer) -> None:
        """Read from `producer` from now on."""
        self._register(producer)
        self.producers.add(producer)

    def remove(self, producer: Producer) -> None:
        """Stop reading from `producer`, whose socket is still open, and drop its incomplete message."""
        self.producers.discard(producer)
        self._parked.pop(producer, None)
        self._reactor.unregister(producer.fd)
        self._builder.drop(producer.inbox)
        self._partials.forget(producer)

    def serve(self, producer: Producer) -> None:
        """Read from `producer`, which is ready, once; or park it until there is room."""
        if self.closed or self._parked or self._read(producer) is None:
            self._park(producer)

    def resume(self) -> None:
        """Read from the parked producers, because there may be room."""
        parked = self._parked
        for _ in range(len(parked)):
            if self.closed or not parked:
                return
            producer = next(iter(parked))
            if self._read_contained(producer) is None:
                return
            parked.pop(producer, None)
            if producer in self.producers:  # reading may have closed it
                try:
                    self._register(producer)
                except OSError as error:  # no memory, or fs.epoll.max_user_watches reached
                    producer.lost(error)

    def watch(self, producer: Producer) -> None:
        """Apply the changed `interest` of `producer`."""
        if producer not in self._parked:
            self._reactor.modify(producer.fd, producer.interest())

    def begin_drain(self) -> None:
        """Before a stop: `drain` reads from the producers of this moment, and from no others."""
        self._draining = dict.fromkeys(self.producers, DRAIN_QUANTA)
        self._grace = 0.0

    def drain(self) -> bool:
        """Read what the kernel still holds: producers may have sent it and closed.

        False when only a commit can make room for more; the caller then commits and calls again.
        """
        draining = self._draining
        for producer in tuple(draining):
            while producer in self.producers and draining[producer] > 0:
                draining[producer] -= 1
                more = self._read_contained(producer)
                if more is None:
                    return False
                if not more:
                    break
            del draining[producer]
        return True

    @property
    def waits(self) -> bool:
        """Whether memory was short a moment ago; a timer begins the round that tries again."""
        return self._memory_timer is not None

    @property
    def paused(self) -> str | None:
        """Why reading pauses for lack of memory, for health checks; None when it does not."""
        return self._memory.paused

    @property
    def crowded(self) -> bool:
        """Whether producers are parked."""
        return bool(self._parked)

    def _register(self, producer: Producer) -> None:
        self._reactor.register(producer.fd, producer.interest(), producer.on_ready, producer.abort)

    def _read(self, producer: Producer) -> bool | None:  # noqa: C901, PLR0912 - the path of every chunk, in one piece
        """Read from `producer` once, into the batch. Returns whether there may be more; None: there is no room."""
        builder, inbox = self._builder, producer.inbox
        try:
            try:
                space = builder.space(inbox)
                if space is None:
                    space = self._find_room(producer)
            except MemoryError:
                space = None
                self._wait_for_memory()
        except (FatalError, UsageError):
            raise
        except Exception as error:
            raise _shared(error) from error
        if space is None:
            return None if producer in self.producers else False  # it may have been closed to make room
        try:
            count = producer.sock.recv_into(space)
        except BlockingIOError:
            return False
        except OSError as error:
            producer.lost(error)
            return False
        if not count:
            producer.ended()
            return False
        batch = builder.batch
        before = batch.size
        wrong: FramingError | NoMemoryError | None = None
        try:
            try:
                builder.received(inbox, count)
            except (FramingError, NoMemoryError) as error:
                wrong = error
            added = batch.size - before
            if added:
                producer.appended(batch, added)
        except Exception as error:
            raise _shared(error) from error
        if inbox.partial or inbox.noted:
            self._partials.note(producer, completed=added > 0)
        if isinstance(wrong, FramingError):
            producer.misframed(wrong)
        elif wrong is not None:
            producer.evicted(f"busy, no memory for this message ({len(inbox.partial)} bytes of it are dropped)")
        return True

    def _read_contained(self, producer: Producer) -> bool | None:
        """Read outside of the handler of `producer`: an unexpected error must close this producer alone."""
        try:
            return self._read(producer)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._reactor.contain(error, producer.abort)
            return False

    def complete(self, producer: Producer) -> bool:
        """Complete the last message of `producer` after a FIN where the framing can. Returns whether it did."""
        try:
            return self._builder.finish(producer.inbox) > 0
        except Exception as error:
            raise _shared(error) from error

    # --- room and memory

    def _find_room(self, producer: Producer) -> memoryview | None:
        """Make room until there is space for `producer`; None when none can be made at the moment."""
        space = None
        while space is None and self._make_room() and producer in self.producers:
            space = self._builder.space(producer.inbox)
        return space

    def _wait_for_memory(self) -> None:
        self._commit()  # which frees the batch's memory
        self._memory()
        if self._memory_timer is None:  # it begins a round, in which parked producers are tried again
            self._memory_timer = self._reactor.call_later(RETRY_SECONDS, self._memory_waited)

    def _memory_waited(self) -> None:
        self._memory_timer = None

    def _make_room(self) -> bool:
        """Commit, or close the producer without progress for longest. Returns whether there may be space now."""
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
            if self._grace_timer is None:  # it begins a round, in which parked producers are tried again
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

    def _park(self, producer: Producer) -> None:
        self._reactor.unregister(producer.fd)
        if producer.inbox.noted:
            waiting = fcntl.ioctl(producer.fd, termios.FIONREAD, bytes(4))
            self._partials.excuse(producer, int.from_bytes(waiting, sys.byteorder))
        self._parked[producer] = None


def _shared(error: Exception) -> FatalError:
    """The error that ends the daemon because shared state may be half changed."""
    return FatalError(
        f"unexpected error while gathering a batch: {error!r}; nothing more is acknowledged; start the collator again"
        " (the next start recovers), and report this bug"
    )
