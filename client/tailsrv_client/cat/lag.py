"""How far behind a consumer is: a line on standard error, once a second, from a thread of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.terminal import say
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError, reason

if TYPE_CHECKING:
    from tailsrv_client.blocking.consumer import Consumer
    from tailsrv_client.protocol.lag import Lag

SECONDS: Final = 1.0


class LagReporter:
    """Reports on `consumer`: bytes from the broadcaster alone; messages and seconds with an indexer."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def start(self) -> None:
        """Begin; ends with the process."""
        start(self._run, "lag")

    def _run(self) -> None:
        while not self._consumer.finished:
            began = time.monotonic()
            try:
                say("lag", describe(self._consumer.lag()))
            except OSError as error:
                say("lag", f"not known ({reason(error)})")
            except TailsrvError as error:
                say("lag", f"not known ({error})")
            time.sleep(max(0.0, began + SECONDS - time.monotonic()))


def describe(lag: Lag) -> str:
    """The line."""
    if lag.messages is None or lag.seconds is None:
        return f"{lag.bytes} bytes behind"
    return f"{lag.bytes} bytes, {lag.messages} messages, {lag.seconds:.1f} s behind"
