"""Reading the headers of new clients, each within a time limit.

A header may arrive in pieces; `tailsrv_formats.header` parses it. Bytes after the header are not read: they stay in the
socket until `LingeringClose` discards them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailsrv_formats.header import HEADER_BYTES, HeaderError, Request, Where, parse
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.logs import Repeated, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor


class HeaderReader:
    """The subscribers that are AWAITING_HEADER, and what they have sent."""

    def __init__(
        self,
        reactor: Reactor,
        seconds: float,
        log: Log,
        *,
        expired: Callable[[Subscriber], None],
        abort: Callable[[Subscriber], None],
    ) -> None:
        """``expired(subscriber)`` is called when its header is not complete after `seconds`.

        ``abort(subscriber)`` closes it when that raises an unexpected error.
        """
        self._seconds = seconds
        self._expired = expired
        self._received: dict[Subscriber, bytes] = {}
        self._deadlines: Deadlines[Subscriber] = Deadlines(reactor, seconds, self._on_timeout, abort)
        self._log_bad = Repeated(log.warning, "bad header")
        self.bad = 0
        """Number of headers that were invalid, empty or late."""

    def add(self, subscriber: Subscriber) -> None:
        """Wait for the header of `subscriber`; call `read` whenever its socket is readable."""
        self._received[subscriber] = b""
        self._deadlines.start(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Forget `subscriber`, which need not have been added."""
        if self._received.pop(subscriber, None) is not None:
            self._deadlines.cancel(subscriber)

    def pending(self) -> tuple[Subscriber, ...]:
        """The subscribers whose headers have not been read."""
        return tuple(self._received)

    def read(self, subscriber: Subscriber) -> Request | Where | None:
        """Read what has arrived. Returns the request and removes `subscriber`; None while the header is incomplete.

        Raises `HeaderError`, which has been counted, and logged unless the header is empty; and `OSError` if the client
        has disconnected.
        """
        received = self._received[subscriber]
        try:
            data = subscriber.sock.recv(HEADER_BYTES - len(received))
        except BlockingIOError:
            return None
        received += data
        try:
            request = parse(received, ended=not data)
        except HeaderError as error:
            self.bad += 1
            if received:  # a health check connects and disconnects without a byte
                self._log_bad(peer=subscriber.peer, error=str(error), header=printable(received))
            raise
        if request is None:
            self._received[subscriber] = received
        else:
            self.remove(subscriber)
        return request

    def _on_timeout(self, subscriber: Subscriber) -> None:
        self.bad += 1
        error = f"not complete after {self._seconds:g} s"
        self._log_bad(peer=subscriber.peer, error=error, header=printable(self._received[subscriber]))
        self._expired(subscriber)
