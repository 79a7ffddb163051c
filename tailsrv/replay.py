"""Replays: subscribers that are far behind, or whose bytes are on the disk, are served by threads.

A sendfile of bytes that are not in memory sleeps until the disk has answered; one of bytes that are uses the processor
for as long as copying takes. Live subscribers must feel neither, so replays run on a few threads. Each is a reactor of
its own, to which its subscribers belong: between the start and the end of a replay nothing passes between threads but
two integers that are only read here, the end of the stream and the subscriber's stop.

An unexpected error in the work for one subscriber ends that subscriber's connection, on these threads as on the home
loop's, which reports it. An error of a thread's own ends the daemon: its subscribers would wait for ever.

The file is looked at in windows. A window whose first byte is not in memory is requested ahead of its use, and dropped
from memory when the last of the replays that are near has passed it: reading old history once does not push out what
others need. "In memory" is what preadv2 with RWF_NOWAIT says; where a file system can't say it, everything counts as
being in memory.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from tailsrv.bucket import Bucket
from tailsrv.subscriber import REPLAYING
from tailsrv.transfer import send_range
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.reactor import HANGUP, WRITE, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.stream import Stream

CORES: Final = len(os.sched_getaffinity(0))
THREADS: Final = 4
"""At most; and no more than there are cores. See `ReplayPool.allowed`."""

NICENESS: Final = 10
"""Of the replay threads: live subscribers go first, here and on the whole machine."""

SWITCH_SECONDS: Final = 0.0002
"""How long the main loop waits at most for a replay thread that holds the interpreter."""

NEAR_BYTES: Final = 1 << 18
"""A subscriber that needs less than this is served by the main loop, in one turn."""

TURN_BYTES: Final = 1 << 20
"""What one subscriber gets before the next one of its thread has a turn, so that a live one waits for no longer,"""
ALONE_TURN_BYTES: Final = 1 << 23
"""and while nobody is live: as much as a socket takes, which saves a fifth of the time."""

WINDOW_BYTES: Final = 1 << 23
KEPT_BYTES: Final = 1 << 28
"""A window is kept in memory for a replay that will need it within so many bytes."""

ADVICE_BYTES: Final = 1 << 17
"""The kernel reads ahead only so much for one call: read_ahead_kb, 128 by default."""

FILE_ERRORS: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ENODATA}
)
"""What sendfile says when it is the file that can't be read; everything else is the peer's."""


def unreadable(path: str, offset: int, error: OSError) -> FatalError:
    """The end of a daemon whose file can't be read."""
    return FatalError(f"cannot read {path} at byte {offset}: {reason(error)}; check its disk or file system")


def in_memory(fd: int, offset: int) -> bool:
    """Whether reading the byte at `offset` would do without the disk."""
    try:
        os.preadv(fd, (bytearray(1),), offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # EOPNOTSUPP: it can't be known; anything worse is seen, and said, by who reads next
        return True
    return True


def _nothing() -> None:
    pass


class ReplayPool:
    """Serves subscribers on threads, and calls ``replayed(subscriber, lost)`` in the home loop when one is finished.

    `lost`: its connection broke. Otherwise it is near the end of the stream, has reached its stop, or has to move to
    another thread: whether there are `live` subscribers decides how many threads there may be.
    """

    def __init__(
        self,
        home: Reactor,
        stream: Stream,
        replayed: Callable[[Subscriber, bool], None],
        live: Sized,
        rate: int | None = None,
    ) -> None:
        self.near = NEAR_BYTES if rate is None else min(NEAR_BYTES, rate // 16)
        """A subscriber that needs less than this needs no replay."""
        self.replaying: dict[Subscriber, None] = {}
        self.cold: set[int] = set()
        """Windows that were read from the disk for us, by number."""
        self.stream = stream
        self.rate = rate
        self._home = home
        self._replayed = replayed
        self.live = live
        """The subscribers whose latency counts."""
        self._threads: list[ReplayThread] = []

    @property
    def sent(self) -> int:
        """Bytes that sockets took, ever."""
        return sum(thread.sent for thread in self._threads)

    def start(self, subscriber: Subscriber) -> bool:
        """Serve it from its offset on; False when there is neither a thread nor the means to start one."""
        thread = self._least_busy()
        if thread is None:
            return False
        self._home.unregister(subscriber.fd)
        subscriber.become(REPLAYING)
        self.replaying[subscriber] = None
        thread.assign(subscriber)
        return True

    def allowed(self) -> int:
        """How many threads there may be now.

        One core is left to live subscribers: with as many threads as cores they wait for a replay's time slice.
        """
        return max(1, min(THREADS, CORES - bool(self.live)))

    def _least_busy(self) -> ReplayThread | None:
        allowed = self.allowed()
        thread = min(self._threads[:allowed], key=len, default=None)
        if thread is None or (len(thread) and len(self._threads) < allowed):
            try:
                thread = ReplayThread(self, len(self._threads))
            except (OSError, RuntimeError):  # no descriptors, no threads: use what there is
                return thread
            sys.setswitchinterval(SWITCH_SECONDS)
            self._threads.append(thread)
        return thread

    def finished(self, subscriber: Subscriber, lost: bool) -> None:
        """Called by a replay thread that has finished with a subscriber."""
        self._home.post(functools.partial(self._finished, subscriber, lost))

    def fail(self, error: BaseException) -> None:
        """Called by a replay thread: the daemon can't go on."""

        def end() -> None:
            raise error

        self._home.post(end)

    def report(self, error: Exception) -> None:
        """Called by a replay thread: something unexpected has cost one subscriber its connection."""
        self._home.post(functools.partial(self._home.contain, error, _nothing))

    def _finished(self, subscriber: Subscriber, lost: bool) -> None:
        if subscriber in self.replaying:  # otherwise the pool was closed meanwhile
            del self.replaying[subscriber]
            self._replayed(subscriber, lost)
        if not self.replaying:
            self.cold.clear()

    def close(self) -> None:
        """Stop the threads. A thread that waits for the disk is left to it."""
        for thread in self._threads:
            thread.stop()
        self.replaying.clear()


class ReplayThread:
    """One thread, and the subscribers that it serves."""

    def __init__(self, pool: ReplayPool, number: int) -> None:
        self.reactor = Reactor()
        self.reactor.on_contained = pool.report
        self._number = number
        self.subscribers: dict[Subscriber, None] = {}
        self.sent = 0
        self._pool = pool
        self._stream = pool.stream
        self._asked: dict[Subscriber, int] = {}
        self._buckets: dict[Subscriber, Bucket] = {}
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self.reactor.close()
            raise

    def __len__(self) -> int:
        return len(self.subscribers)

    def assign(self, subscriber: Subscriber) -> None:
        """Serve `subscriber` from its offset on. Called in the home loop."""
        self.subscribers[subscriber] = None
        self.reactor.post(functools.partial(self._begin, subscriber))

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
            self.reactor.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the daemon's thread has to say and end it
            self._pool.fail(error)

    def stop(self) -> None:
        """End the thread; one that waits for the disk is left to it."""
        self.reactor.post(self.reactor.stop)
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self.reactor.close()

    # --- in the thread

    def _begin(self, subscriber: Subscriber) -> None:
        self._asked[subscriber] = subscriber.offset // WINDOW_BYTES
        if self._pool.rate is not None:
            self._buckets[subscriber] = Bucket(self._pool.rate, time.monotonic())
        abort = functools.partial(self._abort, subscriber)
        try:
            self.reactor.register(subscriber.fd, WRITE, functools.partial(self._on_event, subscriber), abort)
        except Exception as error:  # noqa: BLE001 - contained, or raised again
            self.reactor.contain(error, abort)

    def _on_event(self, subscriber: Subscriber, mask: int) -> None:
        turn = TURN_BYTES if self._pool.live else ALONE_TURN_BYTES
        most = min(turn, min(self._stream.end, subscriber.stop) - subscriber.offset)
        if mask & HANGUP or most <= 0:
            self._finish(subscriber, lost=bool(mask & HANGUP))
            return
        bucket = self._buckets.get(subscriber)
        if bucket is None:
            self._send(subscriber, most)
        elif allowed := bucket.take(time.monotonic(), most):
            bucket.give_back(allowed - self._send(subscriber, allowed))
        else:
            self._pause(subscriber, bucket.wait())

    def _send(self, subscriber: Subscriber, most: int) -> int:
        """One turn; the bytes that its socket took."""
        offset = subscriber.offset
        if offset // WINDOW_BYTES + 1 >= self._asked[subscriber]:
            self._look_ahead(subscriber, offset)
        try:
            sent = send_range(subscriber, self._stream, offset, most)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in FILE_ERRORS:
                raise unreadable(self._stream.path, offset, error) from None
            self._finish(subscriber, lost=True)
            return 0
        self.sent += sent
        subscriber.offset = offset + sent
        # Nothing sent: the file was truncated; the home loop's event is on the way.
        near = min(self._stream.end, subscriber.stop) - subscriber.offset <= self._pool.near
        if not sent or near or self._number >= self._pool.allowed():
            self._finish(subscriber)
        return sent

    def _pause(self, subscriber: Subscriber, seconds: float) -> None:
        """It has had its bytes of this moment: leave it alone, room in its socket or not."""
        self.reactor.modify(subscriber.fd, 0)
        self.reactor.call_later(seconds, functools.partial(self._resume, subscriber))

    def _resume(self, subscriber: Subscriber) -> None:
        if subscriber in self._asked:
            try:
                self.reactor.modify(subscriber.fd, WRITE)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self.reactor.contain(error, functools.partial(self._abort, subscriber))

    def _abort(self, subscriber: Subscriber) -> None:
        if subscriber in self.subscribers:
            self._finish(subscriber, lost=True)

    def _finish(self, subscriber: Subscriber, *, lost: bool = False) -> None:
        self.reactor.unregister(subscriber.fd)
        self._asked.pop(subscriber, None)
        self._buckets.pop(subscriber, None)
        del self.subscribers[subscriber]
        self._pool.finished(subscriber, lost)

    def _look_ahead(self, subscriber: Subscriber, offset: int) -> None:
        """Have the disk work on the windows that come next, and let go of those behind."""
        fd, cold = self._stream.fd, self._pool.cold
        present = offset // WINDOW_BYTES
        for window in range(max(present, self._asked[subscriber]), present + 2):
            begin = window * WINDOW_BYTES
            if window not in cold and not in_memory(fd, max(begin, offset)):
                cold.add(window)
                for part in range(begin, begin + WINDOW_BYTES, ADVICE_BYTES):
                    os.posix_fadvise(fd, part, ADVICE_BYTES, os.POSIX_FADV_WILLNEED)
        self._asked[subscriber] = present + 2
        # What has just been sent may be in the socket still, and can't be dropped.
        behind = present - 2
        if behind in cold and not self._is_needed(behind):
            cold.discard(behind)
            os.posix_fadvise(fd, behind * WINDOW_BYTES, WINDOW_BYTES, os.POSIX_FADV_DONTNEED)

    def _is_needed(self, window: int) -> bool:
        end = (window + 1) * WINDOW_BYTES
        return any(end - KEPT_BYTES < other.offset < end for other in tuple(self._pool.replaying))
