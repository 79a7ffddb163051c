"""Replays: threads that serve the subscribers that need many bytes, or bytes that are on disk.

A sendfile waits for the disk when its bytes are not in memory, and uses the processor when they are. Live subscribers
must not wait for either, so replays run on a few threads of a lower priority. Each thread has a reactor of its own, and
a subscriber belongs to one reactor at a time. `ReplayPool.start` moves it from the main loop to a thread, and the
thread posts it back at the end of its replay. Meanwhile the thread only reads what the main loop changes (the end of
the stream, the subscriber's stop, and whether there are live subscribers), and it alone changes the subscriber's
offset.

An unexpected error in the work for one subscriber closes that subscriber, as it does in the main loop, and the main
loop reports it. An error of the thread itself ends the daemon: the thread's subscribers would not be served any more.

Replays request the file's bytes from the disk ahead of their use: see page_cache.py.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from tailsrv.page_cache import WINDOW_BYTES, ReadAhead
from tailsrv.subscriber import REPLAYING
from tailsrv.token_bucket import TokenBucket
from tailsrv.transfer import FILE_ERRORS, send_range, unreadable
from tailsrv_runtime.reactor import HANGUP, WRITE, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.stream import Stream

CORES: Final = len(os.sched_getaffinity(0))
MAX_THREADS: Final = 4
"""Limit of replay threads on a machine with more cores than this; see `ReplayPool.max_threads`."""

NICENESS: Final = 10
"""Added to the nice value of replay threads: live subscribers and other processes have precedence."""

SWITCH_SECONDS: Final = 0.0002
"""Python's switch interval: how long the main loop waits at most for a replay thread that holds the interpreter."""

NEAR_BYTES: Final = 1 << 18
"""The main loop serves a subscriber that needs at most this, by one sendfile."""

QUANTUM_BYTES: Final = 1 << 20
"""The most that a thread sends to one subscriber before it serves the next one, while there are live subscribers: a
subscriber that has nearly caught up does not wait long."""

QUANTUM_BYTES_WITHOUT_LIVE: Final = 1 << 23
"""The same while there are none: as much as a socket accepts, which saves a fifth of the time."""


def _do_nothing() -> None:
    pass


class ReplayPool:
    """Serves subscribers on threads. The last three methods run there, `max_threads` in both, the others in the loop.

    ``replayed(subscriber, disconnected)`` is called in the main loop at the end of a replay. If the subscriber has not
    disconnected, it is near the end of the stream, has reached its stop, or has to continue on another thread, because
    fewer threads are allowed while there are `live` subscribers.
    """

    def __init__(
        self,
        main: Reactor,
        stream: Stream,
        replayed: Callable[[Subscriber, bool], None],
        live: Sized,
        rate: int | None = None,
    ) -> None:
        """`rate`: bytes per second for each subscriber; None: unlimited."""
        self.near_bytes = NEAR_BYTES if rate is None else min(NEAR_BYTES, rate // 16)
        """A subscriber that needs at most this does not need a replay. With a low rate it needs one earlier, because
        the main loop does not limit the rate."""
        self.stream = stream
        self.rate = rate
        self.live = live
        self._replaying: dict[Subscriber, None] = {}
        self.read_ahead = ReadAhead(stream, self._replaying)
        self._main = main
        self._replayed = replayed
        self._threads: list[ReplayThread] = []

    @property
    def sent(self) -> int:
        """Number of bytes that sockets have accepted since the start."""
        return sum(thread.sent for thread in self._threads)

    def start(self, subscriber: Subscriber) -> bool:
        """Serve `subscriber` from its offset on. Returns False if there is no thread and none can be started."""
        thread = self._least_busy()
        if thread is None:
            return False
        self._main.unregister(subscriber.fd)
        subscriber.become(REPLAYING)
        self._replaying[subscriber] = None
        thread.assign(subscriber)
        return True

    def max_threads(self) -> int:
        """How many threads may serve subscribers at the moment.

        While there are live subscribers, one core is left to them: otherwise they would wait for the time slice of a
        replay thread.
        """
        return max(1, min(MAX_THREADS, CORES - bool(self.live)))

    def _least_busy(self) -> ReplayThread | None:
        allowed = self.max_threads()
        thread = min(self._threads[:allowed], key=len, default=None)
        if thread is None or (len(thread) and len(self._threads) < allowed):
            try:
                thread = ReplayThread(self, len(self._threads))
            except (OSError, RuntimeError):  # out of descriptors or threads
                return thread
            sys.setswitchinterval(SWITCH_SECONDS)
            self._threads.append(thread)
        return thread

    def _finished(self, subscriber: Subscriber, disconnected: bool) -> None:
        if subscriber in self._replaying:  # otherwise the pool was closed in the meantime
            del self._replaying[subscriber]
            self._replayed(subscriber, disconnected)
        if not self._replaying:
            self.read_ahead.forget()

    def close(self) -> None:
        """Stop the threads; see `ReplayThread.stop`."""
        for thread in self._threads:
            thread.stop()
        self._replaying.clear()

    # --- called by the replay threads

    def finish(self, subscriber: Subscriber, disconnected: bool) -> None:
        """The thread has unregistered `subscriber`: return it to the main loop."""
        self._main.post(functools.partial(self._finished, subscriber, disconnected))

    def fail(self, error: BaseException) -> None:
        """The thread has ended by `error`: end the daemon."""

        def end() -> None:
            raise error

        self._main.post(end)

    def report(self, error: Exception) -> None:
        """The thread has closed one subscriber because of `error`: count and log it."""
        self._main.post(functools.partial(self._main.contain, error, _do_nothing))


class ReplayThread:
    """One thread, and the subscribers that it serves. `assign` and `stop` are called in the main loop."""

    def __init__(self, pool: ReplayPool, number: int) -> None:
        """Start the thread. Raises `OSError` or `RuntimeError` if there are no descriptors or threads.

        `number`: how many threads the pool has already.
        """
        self._reactor = Reactor()
        self._reactor.on_contained = pool.report
        self._number = number
        self._subscribers: dict[Subscriber, None] = {}
        """Those that are assigned. The main loop adds and the thread removes: each is one atomic operation."""
        self.sent = 0
        """Number of bytes that sockets have accepted."""
        self._pool = pool
        self._stream = pool.stream
        self._requested: dict[Subscriber, int] = {}
        """The first window that has not been requested from the disk, for each subscriber."""
        self._buckets: dict[Subscriber, TokenBucket] = {}
        """Empty if the rate is unlimited."""
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._reactor.close()
            raise

    def __len__(self) -> int:
        return len(self._subscribers)

    def assign(self, subscriber: Subscriber) -> None:
        """Serve `subscriber` from its offset on."""
        self._subscribers[subscriber] = None
        self._reactor.post(functools.partial(self._begin, subscriber))

    def stop(self) -> None:
        """End the thread. One that waits for the disk is not waited for: it ends with the process."""
        self._reactor.post(self._reactor.stop)
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._reactor.close()

    # --- in the thread

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
            self._reactor.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the main loop
            self._pool.fail(error)

    def _begin(self, subscriber: Subscriber) -> None:
        self._requested[subscriber] = subscriber.offset // WINDOW_BYTES
        if self._pool.rate is not None:
            self._buckets[subscriber] = TokenBucket(self._pool.rate, time.monotonic())
        abort = functools.partial(self._abort, subscriber)
        try:
            self._reactor.register(subscriber.fd, WRITE, functools.partial(self._on_event, subscriber), abort)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self._reactor.contain(error, abort)

    def _on_event(self, subscriber: Subscriber, mask: int) -> None:
        quantum = QUANTUM_BYTES if self._pool.live else QUANTUM_BYTES_WITHOUT_LIVE
        most = min(quantum, min(self._stream.end, subscriber.stop) - subscriber.offset)
        if mask & HANGUP or most <= 0:
            self._finish(subscriber, disconnected=bool(mask & HANGUP))
            return
        bucket = self._buckets.get(subscriber)
        if bucket is None:
            self._send(subscriber, most)
        elif allowed := bucket.take(time.monotonic(), most):
            bucket.put_back(allowed - self._send(subscriber, allowed))
        else:
            self._pause(subscriber, bucket.wait_seconds())

    def _send(self, subscriber: Subscriber, most: int) -> int:
        """Send up to `most` bytes. Returns how many the socket accepted."""
        offset = subscriber.offset
        if offset // WINDOW_BYTES + 1 >= self._requested[subscriber]:
            self._requested[subscriber] = self._pool.read_ahead.advance(offset, self._requested[subscriber])
        try:
            sent = send_range(subscriber, self._stream, offset, most)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in FILE_ERRORS:
                raise unreadable(self._stream.path, offset, error) from None
            self._finish(subscriber, disconnected=True)
            return 0
        self.sent += sent
        subscriber.offset = offset + sent
        # Nothing sent: the file was truncated, and the main loop has not received the event yet.
        near = min(self._stream.end, subscriber.stop) - subscriber.offset <= self._pool.near_bytes
        if not sent or near or self._number >= self._pool.max_threads():
            self._finish(subscriber)
        return sent

    def _pause(self, subscriber: Subscriber, seconds: float) -> None:
        """The bucket is empty: send nothing for a while, although the socket has room."""
        self._reactor.modify(subscriber.fd, 0)
        self._reactor.call_later(seconds, functools.partial(self._resume, subscriber))

    def _resume(self, subscriber: Subscriber) -> None:
        if subscriber in self._requested:  # otherwise its replay has ended in the meantime
            try:
                self._reactor.modify(subscriber.fd, WRITE)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._reactor.contain(error, functools.partial(self._abort, subscriber))

    def _abort(self, subscriber: Subscriber) -> None:
        if subscriber in self._subscribers:
            self._finish(subscriber, disconnected=True)

    def _finish(self, subscriber: Subscriber, *, disconnected: bool = False) -> None:
        self._reactor.unregister(subscriber.fd)
        self._requested.pop(subscriber, None)
        self._buckets.pop(subscriber, None)
        del self._subscribers[subscriber]
        self._pool.finish(subscriber, disconnected)
