"""How far behind a consumer is: a line on standard error, once a second, from a thread of its own."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.blocking.connection import Conversation, Line, SuspendedError
from tailsrv_client.blocking.index import Index
from tailsrv_client.protocol.servers import Rotation, Servers
from tailsrv_client.protocol.stream_end import end_of
from tailsrv_client.terminal import say
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError, reason

if TYPE_CHECKING:
    from tailsrv_client.blocking.consumer import Consumer
    from tailsrv_client.protocol.requests import Entry

SECONDS: Final = 1.0


class LagReporter:
    """Reports on `consumer`: bytes from the broadcaster alone; messages and seconds with an indexer."""

    def __init__(self, consumer: Consumer, index: str | None) -> None:
        self._consumer = consumer
        self._index = None if index is None else Index(index)
        self._line = Line()

    def start(self) -> None:
        """Begin; ends with the process."""
        start(self._run, "lag")

    def _run(self) -> None:
        while not self._consumer.stopped:
            began = time.monotonic()
            try:
                say("lag", self._report())
            except OSError as error:
                say("lag", f"not known ({reason(error)})")
            except TailsrvError as error:
                say("lag", f"not known ({error})")
            time.sleep(max(0.0, began + SECONDS - time.monotonic()))

    def _report(self) -> str:
        core = self._consumer.core
        at = 0 if core is None else core.taken
        if self._index is None:
            return describe(at, self._end(at), None, None, time.time())
        newest = self._index.ask({"count": True})
        next_one = self._index.message_holding(at) if newest.end > at else None
        return describe(at, newest.end, newest.count, next_one, time.time())

    def _end(self, at: int) -> int:
        """Of the stream, at the address that the consumer uses. Raises `OSError`."""
        address = self._consumer.rotation.address
        if address not in self._consumer.rotation.servers.proven:
            raise ConnectionError(f"{address} is not connected")  # whether it is a broadcaster is the consumer's affair
        servers = Servers((address,))
        servers.proven.add(address)
        try:
            return Conversation(self._line, end_of(Rotation(servers), at)).go_on()
        except SuspendedError:
            raise ConnectionError("stopped") from None
        finally:
            self._line.drop()


def describe(at: int, end: int, count: int | None, next_one: Entry | None, now: float) -> str:
    """The line. `next_one`: the message at `at`, when there is one; `count`: messages there are, when known."""
    size = max(0, end - at)
    if count is None:
        return f"{size} bytes behind"
    if next_one is None or next_one.length is None:
        return f"{size} bytes, 0 messages, 0.0 s behind"
    since = now if next_one.time is None else dt.datetime.fromisoformat(next_one.time).timestamp()
    return f"{size} bytes, {count - next_one.number} messages, {max(0.0, now - since):.1f} s behind"
