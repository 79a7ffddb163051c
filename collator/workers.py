"""Threads for calls that wait for the disk. The loop waits for such a call only as long as it chooses to.

The outcome of a call is delivered exactly once, in one of three ways:

    submit(call, done)          ``done(error)`` is called in the loop
    start(call, done)           the loop waits a moment with `Task.ended_within`; if that is not enough, ``done(error)``
                                is called in the loop
    start(call), Task.join()    another worker's thread waits for it
"""

from __future__ import annotations

import errno
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor


def _ignore(_error: BaseException | None) -> None:
    pass


class Task:
    """A call on a worker's thread.

    The lock is held until the call has ended; the thread that acquires it afterwards delivers the outcome.
    """

    __slots__ = ("_abandoned", "_call", "_done", "_ended", "_posted", "_reactor", "error")

    def __init__(
        self, reactor: Reactor, call: Callable[[], None], done: Callable[[BaseException | None], None], *, posted: bool
    ) -> None:
        """`posted`: whether the outcome is delivered in the loop from the outset."""
        self._reactor = reactor
        self._call = call
        self._done = done
        self._posted = posted
        self._abandoned = False
        self._ended = threading.Lock()
        self._ended.acquire()
        self.error: BaseException | None = None
        """What the call raised, once it has ended; None: it returned."""

    def join(self) -> BaseException | None:
        """Wait for the end of the call, on another worker's thread. Returns what it raised, or None."""
        self._ended.acquire()
        return self.error

    def ended_within(self, seconds: float) -> bool:
        """Whether the call ends within `seconds`; if not, ``done(error)`` will be called in the loop."""
        if self._ended.acquire(timeout=seconds):
            return True
        self._posted = True
        # The call may have ended after the time and before the line above, and then nothing will be posted.
        return self._ended.acquire(blocking=False)

    def run(self) -> None:
        """Make the call, on the worker's thread."""
        try:
            self._call()
        except BaseException as raised:  # noqa: BLE001 - handed on, not swallowed
            self.error = raised
        self._ended.release()
        if self._posted and not self._abandoned and self._ended.acquire(blocking=False):
            self._reactor.post(self._deliver)

    def abandon(self) -> None:
        """Do not deliver the outcome: the loop is about to end, and the call may never do."""
        self._abandoned = True

    def _deliver(self) -> None:
        self._done(self.error)


class Worker:
    """A thread that makes one call after the other."""

    def __init__(self, reactor: Reactor, name: str) -> None:
        """Start the thread. Raises `OSError` (EAGAIN) where the system refuses another thread."""
        self._reactor = reactor
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        # A daemon thread: a disk that never answers must not keep the process from ending.
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            raise OSError(errno.EAGAIN, str(error)) from None

    def start(self, call: Callable[[], None], done: Callable[[BaseException | None], None] = _ignore) -> Task:
        """Begin `call`. The caller gets the outcome with `Task.join` or `Task.ended_within`."""
        task = Task(self._reactor, call, done, posted=False)
        self._tasks.put(task)
        return task

    def submit(self, call: Callable[[], None], done: Callable[[BaseException | None], None]) -> Task:
        """Begin `call`. ``done(what it raised, or None)`` is called in the loop when it has ended."""
        task = Task(self._reactor, call, done, posted=True)
        self._tasks.put(task)
        return task

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()

    def close(self) -> None:
        """End the thread after the calls that are queued."""
        self._tasks.put(None)
