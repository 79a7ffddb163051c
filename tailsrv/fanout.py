"""Sending the file's bytes to all subscribers.

Subscribers that have received everything are LIVE: they all have the same offset, so an append is read once, and each
of them gets it by one non-blocking send (`_feed`). This loop is where a broadcaster spends its time: per subscriber and
append it allocates nothing, logs nothing and looks nothing up. A subscriber whose socket does not accept all bytes
becomes BEHIND. When its socket has room, this module sends one piece by sendfile, or moves it to a replay thread if it
needs many bytes, or bytes that are on disk (`_catch_up`). A subscriber whose next byte the file does not have is
WAITING in a heap ordered by offset. `tailsrv.subscriber` has the table of states.

Subscribers that are BEHIND are served after all events of a round, so that live subscribers come first. As long as
replay threads can be started, nothing here waits for the disk: the bytes of an append are in memory, and of all others
this module checks that they are.

An unexpected error in the work for one subscriber closes that subscriber (`Reactor.contain`). State that all
subscribers share is up to date before any of them is handled, so such an error leaves it consistent.

This module knows nothing of headers, listeners or how a connection is closed.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
from typing import TYPE_CHECKING, Final

from tailsrv.page_cache import in_memory
from tailsrv.replay import NEAR_BYTES, ReplayPool
from tailsrv.subscriber import BEHIND, ENDED, LIVE, WAITING, Subscriber
from tailsrv.transfer import FILE_ERRORS, send_range, unreadable
from tailsrv_formats.header import NEVER
from tailsrv_runtime.reactor import HANGUP, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tailsrv_runtime.reactor import Reactor
    from tailsrv_runtime.stream import Stream

CHUNK_BYTES: Final = 1 << 16
"""The most that is read at once for live subscribers: it stays in the processor's cache while each of them gets it."""

CATCH_UPS_PER_ROUND: Final = 8
"""Subscribers that are BEHIND and are served in one round, before live subscribers may get the next append."""

LARGE_APPEND_BYTES: Final = 1 << 20
"""Above this, live subscribers get an append by sendfile, each at its own pace: sendfile does not copy the bytes."""


def _do_nothing() -> None:
    pass


class Fanout:
    """Sends a stream's bytes to subscribers.

    ``finished(subscriber)`` is called when a subscriber has all bytes up to its stop, and ``disconnected(subscriber)``
    when its client has disconnected. ``abort(subscriber)`` is called after an unexpected error in the work for it, in
    any state. Each of the three calls `remove` and closes the socket, which is registered with the reactor.
    """

    def __init__(
        self,
        reactor: Reactor,
        stream: Stream,
        finished: Callable[[Subscriber], None],
        disconnected: Callable[[Subscriber], None],
        *,
        abort: Callable[[Subscriber], None],
        replay_rate: int | None = None,
    ) -> None:
        """`replay_rate`: bytes per second for each subscriber that replays; None: unlimited."""
        self._reactor = reactor
        self._stream = stream
        self._finished = finished
        self._disconnected = disconnected
        self._abort = abort
        self.live_offset = stream.end
        """The next byte for every live subscriber. Also without any, it follows the end of the stream."""
        self._sent = 0
        self._live: dict[Callable[[bytes], int], Subscriber] = {}
        """The live subscribers by their `send`: the loop over all of them needs nothing else."""
        self._replays = ReplayPool(reactor, stream, self._replayed, self._live, replay_rate)
        self._waiting: list[tuple[int, int, Subscriber]] = []
        """A heap: the offset, then a number that makes each entry unique, so that subscribers are never compared."""
        self._numbers = itertools.count()
        self._removed_waiting = 0
        """At most this many entries of the heap belong to subscribers that were removed."""
        self._due: dict[Subscriber, None] = {}
        """Subscribers that are BEHIND and whose sockets have room, in the order of these events."""
        self._advance_is_scheduled = False
        reactor.after_round(self._serve_due)

    @property
    def sent(self) -> int:
        """Number of bytes that sockets have accepted since the start."""
        return self._sent + self._replays.sent

    # --- subscribers are added and removed

    def add(self, subscriber: Subscriber) -> None:
        """Serve `subscriber` from its offset on. It is registered with the reactor, for any events."""
        subscriber.become(BEHIND)
        self._catch_up(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Stop serving `subscriber`, which need not have been added."""
        self._live.pop(subscriber.send, None)
        self._due.pop(subscriber, None)
        if subscriber.state is WAITING:
            self._removed_waiting += 1
        subscriber.become(ENDED)
        # An entry in the middle of a heap cannot be removed; but clients that ask for byte 2**62 and disconnect must
        # not make the heap grow.
        if self._removed_waiting > len(self._waiting) // 2:
            self._waiting = [entry for entry in self._waiting if entry[2].state is WAITING]
            heapq.heapify(self._waiting)
            self._removed_waiting = 0

    def offset(self, subscriber: Subscriber) -> int:
        """The next byte that `subscriber` will get."""
        return self.live_offset if subscriber.state is LIVE else subscriber.offset

    def stop_at(self, end: int, subscribers: Iterable[Subscriber]) -> None:
        """The stream ends at byte `end`: finish each of `subscribers` that has everything, and the others later.

        `subscribers`: all that were added and not removed.
        """
        for subscriber in tuple(self._live.values()):
            self._set_behind(subscriber, self.live_offset)
        self.live_offset = max(self.live_offset, end)
        self._waiting.clear()
        for subscriber in tuple(subscribers):
            subscriber.stop = min(subscriber.stop, max(subscriber.offset, end))
            if subscriber.state is WAITING:
                subscriber.become(BEHIND)
            if subscriber.state is BEHIND:
                self._guard(self._place, subscriber)

    def close(self) -> None:
        """Stop the replays."""
        self._replays.close()

    def _guard(self, step: Callable[[Subscriber], None], subscriber: Subscriber) -> None:
        """Call ``step(subscriber)``; an unexpected error closes the subscriber."""
        try:
            step(subscriber)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._contain(error, subscriber)

    def _contain(self, error: Exception, subscriber: Subscriber) -> None:
        self._reactor.contain(error, functools.partial(self._abort, subscriber))

    # --- the file grows

    def advance(self) -> None:
        """The stream's end may have moved: send the bytes that are new."""
        start, end = self.live_offset, self._stream.end
        if end <= start:
            if end < start:
                self._on_truncation()
        elif not self._live:
            self.live_offset = end
        elif end - start > LARGE_APPEND_BYTES:
            self._on_large_append(end)
        else:
            self._feed(start, end)
        if self._waiting:
            self._wake_waiting()

    def _feed(self, start: int, end: int) -> None:
        """Send a chunk of the bytes from `start` to `end` to every live subscriber."""
        live = self._live
        try:
            data = os.pread(self._stream.fd, min(end - start, CHUNK_BYTES), start)
        except OSError as error:
            raise unreadable(self._stream.path, start, error) from None
        length = len(data)
        # Subscribers are changed after the loop: to remove one from the dict during the iteration is an error.
        short: list[tuple[Callable[[bytes], int], int]] = []
        for send in live:
            try:
                sent = send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = -1
            except Exception as error:  # noqa: BLE001 - reported here; the subscriber is closed below, as if disconnected
                self._reactor.contain(error, _do_nothing)
                sent = -1
            if sent != length:
                short.append((send, sent))
        self.live_offset = start + length
        self._sent += length * len(live)
        for send, sent in short:
            subscriber = live[send]
            try:
                self._on_short_send(subscriber, start, length, sent)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._contain(error, subscriber)
        if self.live_offset < end and length:
            self._schedule_advance()

    def _schedule_advance(self) -> None:
        """Send the next chunk after the other events of this round were handled."""
        if not self._advance_is_scheduled:
            self._advance_is_scheduled = True
            self._reactor.call_later(0, self._advance_again)

    def _advance_again(self) -> None:
        self._advance_is_scheduled = False
        self.advance()

    def _on_short_send(self, subscriber: Subscriber, start: int, length: int, sent: int) -> None:
        """The socket accepted `sent` of the chunk's `length` bytes; -1: the client has disconnected."""
        self._sent -= length - max(sent, 0)
        if sent < 0:
            self._disconnected(subscriber)
        else:
            self._set_behind(subscriber, start + sent)
            self._wait_for(subscriber, WRITE)

    def _set_behind(self, subscriber: Subscriber, offset: int) -> None:
        """Make a live subscriber BEHIND; `offset` is the next byte that it needs."""
        del self._live[subscriber.send]
        subscriber.become(BEHIND)
        subscriber.offset = offset

    def _on_large_append(self, end: int) -> None:
        """Let every live subscriber catch up by itself."""
        start, self.live_offset = self.live_offset, end
        self._place_live(start)

    def _on_truncation(self) -> None:
        """The file is shorter: no live subscriber gets anything until the file exceeds what all of them have."""
        start, self.live_offset = self.live_offset, self._stream.end
        self._place_live(start)

    def _place_live(self, offset: int) -> None:
        """The live subscribers need byte `offset`, and `live_offset` is another: change their states."""
        for subscriber in tuple(self._live.values()):
            self._set_behind(subscriber, offset)
            self._guard(self._place, subscriber)

    def _wake_waiting(self) -> None:
        """Serve the waiting subscribers that the end of the stream has reached."""
        waiting = self._waiting
        woken = []
        while waiting and waiting[0][0] < self.live_offset:
            woken.append(heapq.heappop(waiting)[2])
        for subscriber in woken:
            if subscriber.state is WAITING:  # otherwise it was removed, and its entry was left in the heap
                subscriber.become(BEHIND)
                self._guard(self._catch_up, subscriber)

    # --- subscribers that are behind

    def on_event(self, subscriber: Subscriber, mask: int) -> None:
        """The socket of an added subscriber has room, or has hung up."""
        if mask & HANGUP:
            self._disconnected(subscriber)
        elif subscriber.state is BEHIND:
            self._due[subscriber] = None

    def _serve_due(self) -> None:
        due = self._due
        if due:
            # The others stay first in the order: their sockets still have room, so the next round serves them.
            for subscriber in tuple(itertools.islice(due, CATCH_UPS_PER_ROUND)):
                del due[subscriber]
                try:
                    self._catch_up(subscriber)
                except Exception as error:  # noqa: BLE001 - contained, or raised again
                    self._contain(error, subscriber)

    def _catch_up(self, subscriber: Subscriber) -> None:
        """Send one piece to a subscriber that is BEHIND, or start its replay; then change its state if necessary."""
        offset = subscriber.offset
        available = min(self.live_offset, subscriber.stop) - offset
        if available > 0:
            fd = self._stream.fd
            if (available > self._replays.near_bytes or not in_memory(fd, offset)) and self._replays.start(subscriber):
                return
            # Also if no thread could be started: then the main loop waits for the disk, but the client is served.
            try:
                sent = send_range(subscriber, self._stream, offset, min(available, NEAR_BYTES))
            except BlockingIOError:
                self._wait_for(subscriber, WRITE)
                return
            except OSError as error:
                if error.errno in FILE_ERRORS:
                    raise unreadable(self._stream.path, offset, error) from None
                self._disconnected(subscriber)
                return
            if not sent:  # the file was truncated, and its event has not arrived yet
                self._set_waiting(subscriber)
                return
            self._sent += sent
            subscriber.offset = offset + sent
        self._place(subscriber)

    def _replayed(self, subscriber: Subscriber, disconnected: bool) -> None:
        """A replay thread returns the subscriber."""
        subscriber.become(BEHIND)
        subscriber.events = 0
        try:
            self._reactor.register(subscriber.fd, 0, subscriber.handler, functools.partial(self._abort, subscriber))
            if disconnected:
                self._disconnected(subscriber)
            else:
                self._place(subscriber)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._contain(error, subscriber)

    def _place(self, subscriber: Subscriber) -> None:
        """Give a subscriber that is BEHIND the state that follows from its offset."""
        offset = subscriber.offset
        if offset >= subscriber.stop:
            self._finished(subscriber)
        elif offset < self.live_offset:
            self._wait_for(subscriber, WRITE)
        elif offset == self.live_offset and subscriber.stop == NEVER:
            self._wait_for(subscriber, 0)
            subscriber.become(LIVE)
            self._live[subscriber.send] = subscriber
        else:
            self._set_waiting(subscriber)

    def _set_waiting(self, subscriber: Subscriber) -> None:
        self._wait_for(subscriber, 0)
        subscriber.become(WAITING)
        heapq.heappush(self._waiting, (subscriber.offset, next(self._numbers), subscriber))

    def _wait_for(self, subscriber: Subscriber, events: int) -> None:
        """Have the reactor wait for `events` of the subscriber's socket; it reports a hang-up in any case."""
        if subscriber.events != events:
            subscriber.events = events
            self._reactor.modify(subscriber.fd, events)
