"""A thread for calls that block on the disk."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.kit.reactor import Reactor


class Worker:
    """Runs one call at a time on a thread of its own, which begins with the first call.

    What a call raises is handed to whoever waits for its end.
    """

    def __init__(self, reactor: Reactor, name: str) -> None:
        self._reactor = reactor
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], None], Callable[[BaseException | None], None] | None] | None]
        self._calls = SimpleQueue()
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()
        self._running = False

    def begin(self, call: Callable[[], None]) -> None:
        """Start `call`; `join` waits for it."""
        self._put(call, None)

    def join(self) -> BaseException | None:
        """Wait, from any thread, for the end of what `begin` started: what it raised, or None."""
        return self._ends.get()

    def submit(self, call: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Start `call`, and when it has ended, call ``done(what it raised)`` in the reactor's loop."""
        self._put(call, done)

    def _put(self, call: Callable[[], None], done: Callable[[BaseException | None], None] | None) -> None:
        if not self._running:
            self._running = True
            # A daemon thread: a disk that never answers must not keep the process from ending.
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._calls.put((call, done))

    def _run(self) -> None:
        while (work := self._calls.get()) is not None:
            call, done = work
            error: BaseException | None = None
            try:
                call()
            except BaseException as raised:  # noqa: BLE001 - handed on, not swallowed
                error = raised
            if done is None:
                self._ends.put(error)
            else:
                self._reactor.post(lambda done=done, error=error: done(error))  # type: ignore[misc]  # mypy can't infer defaults of a lambda

    def close(self) -> None:
        """End the thread once it has nothing to do."""
        if self._running:
            self._calls.put(None)
