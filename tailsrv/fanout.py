"""New bytes to everybody who waits for them.

Subscribers that have everything are *live*: they are all at one offset, so an append is read once and each of them gets
one non-blocking send. That loop is where a broadcaster's time goes; nothing is allocated, logged or looked up in it. A
subscriber whose socket does not accept all bytes falls *behind* and is served when its socket has room: by a sendfile
here if it needs little, on a replay thread if it needs much, or bytes that are on the disk. A subscriber whose next
byte is not in the file yet is *waiting*, in a heap ordered by offset. `tailsrv.subscriber` has the table of states.

Live subscribers come first in each round of the reactor: turns are taken after its events. Nothing here waits for a
disk: what has just been appended is in memory, and everything else is looked for there first.

An unexpected error in the work for one subscriber closes that one (`Reactor.contain`). What all of them share is set
before any of them is dealt with, so that such an error leaves it whole.

Knows nothing of headers, listeners or how a connection is closed.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
from typing import TYPE_CHECKING, Final

from tailsrv.replay import FILE_ERRORS, NEAR_BYTES, ReplayPool, in_memory, unreadable
from tailsrv.subscriber import BEHIND, GONE, LIVE, WAITING, Subscriber
from tailsrv.transfer import send_range
from tailsrv_formats.header import NEVER
from tailsrv_runtime.reactor import HANGUP, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tailsrv_runtime.reactor import Reactor
    from tailsrv_runtime.stream import Stream

CHUNK_BYTES: Final = 1 << 16
"""What is read at a time for live subscribers: it stays in the processor's cache while it is copied to all of them."""

TURNS_PER_ROUND: Final = 8
"""How many such turns there are between two looks at the live ones."""

SCATTER_BYTES: Final = 1 << 20
"""When the end runs ahead of the live ones by so much, each catches up by itself: sendfile copies nothing."""


def _nothing() -> None:
    pass


class Fanout:
    """Sends a stream's bytes to subscribers.

    `finished(subscriber)` is called for one that has all it asked for, `lost(subscriber)` for one whose connection
    broke. Both are out of our hands then, but still registered with the reactor. ``abort(subscriber)`` closes one in
    whose service something unexpected went wrong, however far it had come.
    """

    def __init__(
        self,
        reactor: Reactor,
        stream: Stream,
        finished: Callable[[Subscriber], None],
        lost: Callable[[Subscriber], None],
        *,
        abort: Callable[[Subscriber], None],
        replay_rate: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._stream = stream
        self._finished = finished
        self._lost = lost
        self._abort = abort
        self.at = stream.end
        """What live subscribers have been sent."""
        self._sent = 0
        self._live: dict[Callable[[bytes], int], Subscriber] = {}
        self._replays = ReplayPool(reactor, stream, self._replayed, self._live, replay_rate)
        self._waiting: list[tuple[int, int, Subscriber]] = []
        self._left = 0
        """How many of those in the heap have left, at most."""
        self._order = itertools.count()
        self._due: dict[Subscriber, None] = {}
        self._advancing = False
        reactor.after_round(self._take_turns)

    @property
    def sent(self) -> int:
        """Bytes that sockets took, ever."""
        return self._sent + self._replays.sent

    # --- subscribers come and go

    def add(self, subscriber: Subscriber) -> None:
        """Serve it from its offset on. It is registered with the reactor, for any event."""
        subscriber.become(BEHIND)
        self._catch_up(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Forget it; also one that we never had."""
        self._live.pop(subscriber.send, None)
        self._due.pop(subscriber, None)
        if subscriber.state is WAITING:
            self._left += 1
        subscriber.become(GONE)
        # An entry in the middle of a heap cannot be removed; but clients that ask for byte 2**62 and disconnect must
        # not make the heap grow.
        if self._left > len(self._waiting) // 2:
            self._waiting = [entry for entry in self._waiting if entry[2].state is WAITING]
            heapq.heapify(self._waiting)
            self._left = 0

    def offset(self, subscriber: Subscriber) -> int:
        """The next byte that it gets."""
        return self.at if subscriber.state is LIVE else subscriber.offset

    def stop_at(self, end: int, subscribers: Iterable[Subscriber]) -> None:
        """Let none of `subscribers`, which are all there are, go beyond `end`: who is there has finished."""
        for subscriber in tuple(self._live.values()):
            self._leave_live(subscriber, self.at)
        self.at = max(self.at, end)
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
        """Take one step for one subscriber; what goes wrong with it is that subscriber's end."""
        try:
            step(subscriber)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._contain(error, subscriber)

    def _contain(self, error: Exception, subscriber: Subscriber) -> None:
        self._reactor.contain(error, functools.partial(self._abort, subscriber))

    # --- the file grows

    def advance(self) -> None:
        """The stream's end may have moved: send what is new."""
        at, end = self.at, self._stream.end
        if end <= at:
            if end < at:
                self._go_back()
        elif not self._live:
            self.at = end
        elif end - at > SCATTER_BYTES:
            self._scatter(end)
        else:
            self._feed(at, end)
        if self._waiting:
            self._wake_waiting()

    def _feed(self, at: int, end: int) -> None:
        live = self._live
        try:
            data = os.pread(self._stream.fd, min(end - at, CHUNK_BYTES), at)
        except OSError as error:
            raise unreadable(self._stream.path, at, error) from None
        length = len(data)
        short: list[tuple[Callable[[bytes], int], int]] = []
        for send in live:
            try:
                sent = send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = -1
            except Exception as error:  # noqa: BLE001 - reported here; the subscriber is closed with those that are lost
                self._reactor.contain(error, _nothing)
                sent = -1
            if sent != length:
                short.append((send, sent))
        self.at = at + length
        self._sent += length * len(live)
        for send, sent in short:
            subscriber = live[send]
            try:
                self._fell_short(subscriber, at, length, sent)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._contain(error, subscriber)
        if self.at < end and length:
            self._advance_again()

    def _advance_again(self) -> None:
        """There is more than a chunk: go on after others had a turn."""
        if not self._advancing:
            self._advancing = True
            self._reactor.call_later(0, self._go_on)

    def _go_on(self) -> None:
        self._advancing = False
        self.advance()

    def _fell_short(self, subscriber: Subscriber, at: int, length: int, sent: int) -> None:
        self._sent -= length - max(sent, 0)
        if sent < 0:
            self._lost(subscriber)
        else:
            self._leave_live(subscriber, at + sent)
            self._want(subscriber, WRITE)

    def _leave_live(self, subscriber: Subscriber, offset: int) -> None:
        del self._live[subscriber.send]
        subscriber.become(BEHIND)
        subscriber.offset = offset

    def _scatter(self, end: int) -> None:
        at, self.at = self.at, end
        for subscriber in tuple(self._live.values()):
            self._leave_live(subscriber, at)
            self._guard(self._want_room, subscriber)

    def _go_back(self) -> None:
        """The file was truncated: nobody gets anything until it exceeds what has been sent."""
        at, self.at = self.at, self._stream.end
        for subscriber in tuple(self._live.values()):
            self._leave_live(subscriber, at)
            self._guard(self._wait, subscriber)

    def _wake_waiting(self) -> None:
        waiting = self._waiting
        woken = []
        while waiting and waiting[0][0] < self.at:
            woken.append(heapq.heappop(waiting)[2])
        for subscriber in woken:
            if subscriber.state is WAITING:
                subscriber.become(BEHIND)
                self._guard(self._catch_up, subscriber)

    # --- those who are not live

    def on_event(self, subscriber: Subscriber, mask: int) -> None:
        """A subscriber's socket has room, or its peer has gone."""
        if mask & HANGUP:
            self._lost(subscriber)
        elif subscriber.state is BEHIND:
            self._due[subscriber] = None

    def _take_turns(self) -> None:
        due = self._due
        if due:
            # Who is left out has waited longest when the next round comes; its socket has room still.
            for subscriber in tuple(itertools.islice(due, TURNS_PER_ROUND)):
                del due[subscriber]
                try:
                    self._catch_up(subscriber)
                except Exception as error:  # noqa: BLE001 - contained, or raised again
                    self._contain(error, subscriber)

    def _catch_up(self, subscriber: Subscriber) -> None:
        """One turn."""
        offset = subscriber.offset
        ready = min(self.at, subscriber.stop) - offset
        if ready > 0:
            fd = self._stream.fd
            if (ready > self._replays.near or not in_memory(fd, offset)) and self._replays.start(subscriber):
                return
            try:
                sent = send_range(subscriber, self._stream, offset, min(ready, NEAR_BYTES))
            except BlockingIOError:
                self._want(subscriber, WRITE)
                return
            except OSError as error:
                if error.errno in FILE_ERRORS:
                    raise unreadable(self._stream.path, offset, error) from None
                self._lost(subscriber)
                return
            if not sent:  # truncated a moment ago; its event is on the way
                self._wait(subscriber)
                return
            self._sent += sent
            subscriber.offset = offset + sent
        self._place(subscriber)

    def _replayed(self, subscriber: Subscriber, lost: bool) -> None:
        """A replay thread has finished with it; `lost`: its connection broke."""
        subscriber.become(BEHIND)
        subscriber.events = 0
        try:
            self._reactor.register(subscriber.fd, 0, subscriber.handler, functools.partial(self._abort, subscriber))
            if lost:
                self._lost(subscriber)
            else:
                self._place(subscriber)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._contain(error, subscriber)

    def _place(self, subscriber: Subscriber) -> None:
        """Give it the state that its offset calls for."""
        offset = subscriber.offset
        if offset >= subscriber.stop:
            self._finished(subscriber)
        elif offset < self.at:
            self._want(subscriber, WRITE)
        elif offset == self.at and subscriber.stop == NEVER:
            self._want(subscriber, 0)
            subscriber.become(LIVE)
            self._live[subscriber.send] = subscriber
        else:
            self._wait(subscriber)

    def _wait(self, subscriber: Subscriber) -> None:
        self._want(subscriber, 0)
        subscriber.become(WAITING)
        heapq.heappush(self._waiting, (subscriber.offset, next(self._order), subscriber))

    def _want_room(self, subscriber: Subscriber) -> None:
        self._want(subscriber, WRITE)

    def _want(self, subscriber: Subscriber, events: int) -> None:
        if subscriber.events != events:
            subscriber.events = events
            self._reactor.modify(subscriber.fd, events)
