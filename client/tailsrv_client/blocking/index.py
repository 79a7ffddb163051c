"""Look-ups of message numbers, times and offsets at `tailsrv-index`, on a blocking socket.

The first look-up connects, and later ones use the same connection. A look-up is repeated after a lost connection.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from tailsrv_client.blocking.connection import Connection, DialogueRunner, SuspendedError
from tailsrv_client.errors import GaveUpError, IndexFailed, WrongPortError
from tailsrv_client.protocol.bounds import parse_time
from tailsrv_client.protocol.dialogue import Sleep
from tailsrv_client.protocol.ports import INDEX
from tailsrv_client.protocol.requests import (
    BEHIND_PAUSE_SECONDS,
    BEHIND_SECONDS,
    PIPELINE,
    Entry,
    Exchange,
    decode,
    encode,
)
from tailsrv_client.protocol.servers import Rotation, Servers, parse_addresses
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tailsrv_client.protocol.dialogue import Dialogue, Result
    from tailsrv_formats.addresses import Address

LOG = logging.getLogger("tailsrv_client")


class Index:
    """An indexer at one of `addresses` (``ADDR[,ADDR…]`` or a list), asked within `timeout` seconds a request.

    A host alone means port 4324. Methods raise `IndexFailed` with the indexer's own words, `WrongPortError` where
    something else answers, `UnknownHostError`, and `OSError` when none of the addresses answers.
    """

    def __init__(self, addresses: str | Iterable[str | Address], *, timeout: float = 10.0) -> None:
        self._rotation = Rotation(Servers(parse_addresses(addresses, INDEX), INDEX))
        self._timeout = timeout
        self._connection = Connection()
        self._guard = threading.Lock()
        self._exchange = Exchange(self._rotation, timeout)
        self._gives_up_at: float | None = None

    def offset_of(self, number: int) -> int:
        """The byte at which message `number` starts; `number` = `count()`: where the next one will start."""
        return self.ask({"number": number}).offset

    def offsets_of(self, numbers: Iterable[int]) -> Iterator[int]:
        """`offset_of` for many, pipelined: hundreds of requests on their way at once."""
        return (entry.offset for entry in self.ask_all({"number": number} for number in numbers))

    def last(self, messages: int) -> int:
        """The byte at which the Nth message from the end starts, N being `messages`; 0 where there are fewer."""
        return self.ask({"last": messages}).offset

    def at_time(self, time: str | float) -> Entry:
        """The first message that arrived at or after `time`: RFC 3339, or seconds since 1970."""
        return self.ask({"time": parse_time(time) if isinstance(time, str) else time})

    def message_holding(self, offset: int) -> Entry:
        """The message that byte `offset` belongs to."""
        return self.ask({"offset": offset})

    def entry(self, number: int) -> Entry:
        """All that is known about message `number`."""
        return self.ask({"number": number})

    def count(self) -> int:
        """How many messages the stream has."""
        return self.ask({"count": True}).count

    def ask(self, request: dict[str, Any]) -> Entry:
        """The reply to one request in its JSON form: see docs/protocols.md."""
        return next(self.ask_all((request,)))

    def ask_all(self, requests: Iterable[dict[str, Any]]) -> Iterator[Entry]:
        """The replies to many requests, in their order, pipelined."""
        requests = iter(requests)
        while window := list(itertools.islice(requests, PIPELINE)):
            for line in self._ask(b"".join(map(encode, window)), len(window)):
                yield decode(line)

    def stop(self) -> None:
        """Make a look-up in another thread raise `TailsrvError`, and all further ones."""
        self._connection.stop()

    def close(self) -> None:
        """Close the connection; a later look-up connects again."""
        self._connection.close()
        self._exchange.closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, requests: bytes, replies: int) -> list[bytes]:
        """Send `requests` and receive `replies` lines.

        Tries each address once, after the open connection if there is one. Threads that share an index take turns: a
        reply names no request, so only their order tells which is whose.
        """
        with self._guard:
            return self._exchange_lines(requests, replies)

    def _exchange_lines(self, requests: bytes, replies: int) -> list[bytes]:
        attempts = len(self._rotation.servers.addresses) + self._exchange.open
        ends = time.monotonic() + self._timeout
        while True:
            address = self._rotation.address
            try:
                lines = self._wait(self._exchange.ask(requests, replies))
            except (OSError, WrongPortError) as error:
                self.close()
                pause = self._rotation.failed(error)
                # An unverified server that closes connections restarts or is not an indexer: a retry shows which.
                unsure = address in self._rotation.servers.ended_since and time.monotonic() + pause < ends
                attempts -= not unsure
                if not self._may_retry(attempts):
                    raise
                self._wait(_pause(pause if unsure else self._pause(pause)))
            else:
                self._rotation.worked()
                return lines

    def _may_retry(self, attempts: int) -> bool:
        """Whether to try again."""
        return attempts > 0

    def _pause(self, _seconds: float) -> float:
        """How long to wait before the next address is tried."""
        return 0.0

    def _wait(self, dialogue: Dialogue[Result]) -> Result:
        runner = DialogueRunner(self._connection, dialogue)
        try:
            return runner.resume(self._gives_up_at)
        except SuspendedError:
            runner.close()
            self._exchange.closed()
            if self._connection.interrupt.is_set():
                raise TailsrvError("the look-up was stopped") from None
            last_error = self._rotation.last_error or self._rotation.address
            raise GaveUpError(f"no answer from the indexer in time ({last_error})") from None


class PersistentIndex(Index):
    """An index that is asked until it answers, through restarts and rebuilds; for messages that have been received.

    `tailsrv_client` logs a warning whenever it is not there. Raises `WrongPortError`, `UnknownHostError`,
    `IndexFailed`, and `GaveUpError` after `outage` seconds without an answer (None: for ever); not `OSError`.
    """

    def __init__(self, addresses: str | Iterable[str | Address], outage: float | None = None) -> None:
        super().__init__(addresses)
        self._outage = outage

    def ask_all(self, requests: Iterable[dict[str, Any]]) -> Iterator[Entry]:
        """As `Index.ask_all`; what is not indexed yet is waited for."""
        left = deque(requests)
        ends: float | None = None
        self._begin()
        while left:
            window = list(itertools.islice(left, PIPELINE))
            for line in self._ask(b"".join(map(encode, window)), len(window)):
                try:
                    entry = decode(line)
                except IndexFailed as error:
                    # The broadcaster may be ahead of the indexer by the moment that this takes to see the file grow.
                    now = time.monotonic()
                    ends = now + BEHIND_SECONDS if ends is None else ends
                    if not error.passes and now >= ends:
                        raise
                    break
                left.popleft()
                ends = None
                yield entry
                self._begin()
            else:
                continue
            self._wait(_pause(BEHIND_PAUSE_SECONDS))

    def _begin(self) -> None:
        """Count the outage from now on."""
        if self._outage is not None:
            self._gives_up_at = time.monotonic() + self._outage

    def _may_retry(self, attempts: int) -> bool:  # noqa: ARG002 - it always does
        LOG.warning("%s; %s", self._rotation.last_error, self._rotation.next_attempt)
        return True

    def _pause(self, seconds: float) -> float:
        return seconds


def _pause(seconds: float) -> Dialogue[None]:
    if seconds:
        yield Sleep(seconds)
