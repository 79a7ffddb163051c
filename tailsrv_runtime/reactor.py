"""The loop that a daemon runs in: one thread, one epoll.

The loop calls a handler with the event mask when its descriptor is ready; a handler must not block. Readiness is
level-triggered: a handler that leaves work undone is called again in the next round, after all others that are ready.
There is no other fairness, and this is enough if each handler does a bounded piece of work.

A handler may be called although its descriptor is not ready. But it never receives an event of an earlier descriptor
with the same number: a descriptor that is registered during a round receives its first event in the next one.

A handler that works for one peer is registered with `abort`, which closes that peer. If such a handler raises anything
but `FatalError`, the peer is closed, the error is reported and counted, and the loop goes on: no input of a peer ends
the daemon. State that all peers share must not stay half changed: code that changes it raises `FatalError` for any
failure in between.

Why not asyncio: a task or a future for each client and append costs more than the append's own system calls.
docs/benchmarks/loops.md has the figures.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import select
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import UsageError
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import ShortageError, is_shortage

if TYPE_CHECKING:
    from collections.abc import Callable

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
HANGUP: Final = select.EPOLLHUP | select.EPOLLERR
"""epoll reports these always, also if they are not requested."""

LONGEST_WAIT_SECONDS: Final = 86400.0
"""The longest wait in epoll_wait(2), which takes milliseconds as an int (24 days). A later timer waits again."""

EVENTS_PER_ROUND: Final = 256
"""Events per round; further ones follow in the next. Each round allocates room for this many."""


class Timer:
    """A call at a time. `cancel` may be called at any time, also after the call."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        """In seconds of the monotonic clock."""
        self.callback: Callable[[], None] | None = callback
        """None when it has run or was cancelled."""

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Forget the call, and the objects that it refers to."""
        self.callback = None


class Reactor:
    """Descriptors, timers, signals and calls from other threads, all handled on the thread that calls `run`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Callable[[int], None], Callable[[], None] | None]] = {}
        self._fresh: set[int] = set()  # registered during this round: no event of this round is theirs
        self._timers: list[Timer] = []
        self._posted: deque[Callable[[], object]] = deque()
        self._signals: dict[int, Callable[[], None]] = {}
        self._after_round: tuple[Callable[[], None], ...] = ()
        self._running = False
        self._woken = False
        self._closing = threading.Lock()
        self._is_closed = False
        self.contained = 0
        """Number of errors that did not end the loop; see `contain`."""
        self.on_contained: Callable[[Exception], None] = lambda _error: None
        """Called with each of them, to report it."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.register(self._wake_read, READ, self._on_wake)
        except BaseException:
            self._close_descriptors()
            raise

    # --- descriptors

    def register(
        self, fd: int, events: int, handler: Callable[[int], None], abort: Callable[[], None] | None = None
    ) -> None:
        """Call ``handler(mask)`` whenever `fd` has one of `events`, or has hung up.

        ``abort()`` closes the one peer that the handler works for, if the handler raises; without it the loop ends.
        Raises `ShortageError` when epoll's watches are used up, and other `OSError`s.
        """
        try:
            self._epoll.register(fd, events)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ShortageError(error, "out of epoll watches", "raise fs.epoll.max_user_watches") from None
        self._handlers[fd] = handler, abort
        self._fresh.add(fd)

    def modify(self, fd: int, events: int, handler: Callable[[int], None] | None = None) -> None:
        """Wait for other events on `fd`, and replace its handler if one is given."""
        self._epoll.modify(fd, events)
        if handler is not None:
            self._handlers[fd] = handler, self._handlers[fd][1]

    def unregister(self, fd: int) -> None:
        """Forget `fd`. Call it before `fd` is closed. Unknown descriptors are ignored."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _forget(self, fd: int) -> None:
        """Unregister a peer that could not be closed: its descriptor may be closed, or may not be."""
        with contextlib.suppress(OSError):
            self.unregister(fd)

    def contain(self, error: Exception, abort: Callable[[], None] | None) -> bool:
        """Handle an error in the work for one peer: count and report it, and close the peer with ``abort()``.

        A shortage is reported, but not counted. Call it for work that is not done in a registered handler (timers,
        turns). Raises `error` if it is a `FatalError`, which is the daemon's own, or if there is no peer to close.
        Returns False if `abort` failed as well, which is also reported; the peer may be half closed then.
        """
        if abort is None or isinstance(error, (FatalError, UsageError)):
            raise error
        if not is_shortage(error):
            self.contained += 1
        self.on_contained(error)
        try:
            abort()
        except (FatalError, UsageError):
            raise
        except Exception as second:  # noqa: BLE001 - reported
            self.on_contained(second)
            return False
        return True

    # --- time

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, in `seconds` or later. A reactor without timers never wakes up by itself."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    # --- other threads, signals, rounds

    def post(self, callback: Callable[[], object]) -> None:
        """Call `callback` on the loop's thread, soon. The only method that other threads may call."""
        self._posted.append(callback)
        # One byte for all calls until the loop reads it: a full pipe would lose signals.
        if not self._woken:
            self._woken = True
            with self._closing:
                if not self._is_closed:
                    os.write(self._wake_write, b"\0")

    def on_signal(self, signum: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop after the signal was received, not in the middle of a handler."""
        self._signals[signum] = callback
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        # The handler does nothing: Python writes the number to the wake-up descriptor.
        signal.signal(signum, lambda *_: None)

    def after_round(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every round of events: for work that many descriptors share, and that is done once."""
        self._after_round += (callback,)

    def _on_wake(self, _mask: int) -> None:
        woken = os.read(self._wake_read, 4096)
        # In this order: the read may have consumed the byte of a post that has just come; this post is among those that
        # are counted below. A post after this line writes a byte again.
        self._woken = False
        for signum in set(woken) - {0}:
            callback = self._signals.get(signum)
            if callback is not None:
                callback()
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    # --- the loop

    def run(self) -> None:
        """Handle events until `stop`. An error of a handler that is not contained ends the loop, and is raised here."""
        self._running = True
        handlers, poll, timers, now = self._handlers, self._epoll.poll, self._timers, time.monotonic
        fresh = self._fresh
        while self._running:
            # The hot path of every daemon: an append is one turn of this loop.
            events = poll(self._timeout() if timers else -1, EVENTS_PER_ROUND)
            fresh.clear()
            for fd, mask in events:
                entry = handlers.get(fd)
                if entry is not None and fd not in fresh:
                    try:
                        entry[0](mask)
                    except Exception as error:  # noqa: BLE001 - contained, or raised again
                        if not self.contain(error, entry[1]) and handlers.get(fd) is entry:
                            self._forget(fd)
            if timers and timers[0].when <= now():
                self._run_timers()
            for callback in self._after_round:
                callback()

    def stop(self) -> None:
        """Make `run` return after this round. For handlers; from other threads, `post` it."""
        self._running = False

    def close(self) -> None:
        """Close the loop's own descriptors. Later posts are ignored."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            if self._signals:
                signal.set_wakeup_fd(-1)
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)
        self._epoll.close()

    def _timeout(self) -> float:
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        return min(max(0.0, timers[0].when - time.monotonic()), LONGEST_WAIT_SECONDS) if timers else -1

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
