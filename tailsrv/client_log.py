"""SIGUSR1: one log line for each client."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Final

from tailsrv_runtime import standard_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tailsrv.fanout import Fanout
    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor
    from tailsrv_runtime.stream import Stream

LOGGED_PER_ROUND: Final = 64
"""Clients that are logged before the loop handles other events."""


class ClientLog:
    """Logs each client's state, no faster than the reader of the log takes the lines, so that none is lost."""

    def __init__(
        self, reactor: Reactor, log: Log, subscribers: Mapping[int, Subscriber], fanout: Fanout, stream: Stream
    ) -> None:
        """`subscribers`: all connected clients by descriptor, at any time."""
        self._reactor = reactor
        self._log = log
        self._subscribers = subscribers
        self._fanout = fanout
        self._stream = stream
        self._is_logging = self._is_requested_again = False

    def request(self) -> None:
        """Log each client. If that is under way, log each client once more afterwards: others may have connected."""
        if self._is_logging:
            self._is_requested_again = True
            return
        self._is_logging = True
        self._log_some(list(self._subscribers.values()))

    def _log_some(self, left: list[Subscriber]) -> None:
        now = time.monotonic()
        end = self._stream.end
        for subscriber in left[-LOGGED_PER_ROUND:]:
            if self._subscribers.get(subscriber.fd) is not subscriber:
                continue  # it has disconnected in the meantime
            offset = self._fanout.offset(subscriber)
            self._log.info(
                "client",
                peer=subscriber.peer,
                state=subscriber.state,
                offset=offset,
                lag=max(0, end - offset),
                seconds=round(now - subscriber.since, 3),
            )
        del left[-LOGGED_PER_ROUND:]
        if not left:
            self._is_logging = False
            if self._is_requested_again:
                self._is_requested_again = False
                self._is_logging = True
                left = list(self._subscribers.values())
        if self._is_logging:
            self._continue(functools.partial(self._log_some, left))

    def _continue(self, log_some: functools.partial[None]) -> None:
        if standard_error.writer().waits:
            standard_error.writer().call_when_room(log_some)
        else:
            self._reactor.call_later(0, log_some)
