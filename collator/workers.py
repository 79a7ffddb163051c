"""Threads for calls that wait for the disk. The loop never waits for such a call longer than it chooses to."""

from __future__ import annotations

import errno
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor


class Task:
    """A call on a worker's thread. Its end is taken once: by `join`, by `settle`, or in the loop.

    The lock is held until the call has ended; whoever acquires it then has taken the end.
    """

    __slots__ = ("_call", "_done", "_ended", "_error", "_forgotten", "_left", "_reactor")

    def __init__(
        self, reactor: Reactor, call: Callable[[], None], done: Callable[[BaseException | None], None] | None
    ) -> None:
        self._reactor = reactor
        self._call = call
        self._done = done
        self._error: BaseException | None = None
        self._left = False  # whether the loop has left the end to be posted
        self._forgotten = False
        self._ended = threading.Lock()
        self._ended.acquire()

    def join(self) -> BaseException | None:
        """Wait for the end, on another worker's thread: what the call raised, or None."""
        self._ended.acquire()
        return self._error

    def settle(self, seconds: float = 0.0) -> None:
        """Call ``done(what the call raised)`` now if it ends within `seconds`, else in the loop once it has ended."""
        if not (seconds and self._ended.acquire(timeout=seconds)):
            self._left = True
            # It may have ended after the time and before the line above, and then nobody posts.
            if not self._ended.acquire(blocking=False):
                return
        self._finish()

    def run(self) -> None:
        """Make the call, on the worker's thread."""
        try:
            self._call()
        except BaseException as raised:  # noqa: BLE001 - handed on, not swallowed
            self._error = raised
        self._ended.release()
        if self._left and not self._forgotten and self._ended.acquire(blocking=False):
            self._reactor.post(self._finish)

    def forget(self) -> None:
        """Take no end of it: the loop is about to end, and the call may never do."""
        self._forgotten = True

    def _finish(self) -> None:
        if self._done is not None:
            self._done(self._error)


class Worker:
    """Makes one call after the other on a thread of its own."""

    def __init__(self, reactor: Reactor, name: str) -> None:
        """Start the thread. Raises `OSError` (EAGAIN) when there can't be another one."""
        self._reactor = reactor
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        # A daemon thread: a disk that never answers must not keep the process from ending.
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # what Python makes of EAGAIN
            raise OSError(errno.EAGAIN, str(error)) from None

    def start(self, call: Callable[[], None], done: Callable[[BaseException | None], None] | None = None) -> Task:
        """Begin `call`, whose end is then taken with `Task.join` or `Task.settle`."""
        task = Task(self._reactor, call, done)
        self._tasks.put(task)
        return task

    def submit(self, call: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Begin `call`, and when it has ended, call ``done(what it raised)`` in the reactor's loop."""
        self.start(call, done).settle()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()

    def close(self) -> None:
        """End the thread once it has nothing to do."""
        self._tasks.put(None)
