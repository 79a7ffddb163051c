"""Reports the lag of a consumer: a line on standard error, once a second, from a thread of its own."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Any, Final

from tailsrv_client.standard_error import write_line, write_message
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError, reason

if TYPE_CHECKING:
    from tailsrv_client.blocking.consumer import Consumer
    from tailsrv_client.protocol.lag import Lag

SECONDS: Final = 1.0


class LagReporter:
    """Reports on `consumer`: bytes from the broadcaster alone; messages and seconds with an indexer."""

    def __init__(self, consumer: Consumer, *, as_json: bool) -> None:
        self._consumer = consumer
        self._as_json = as_json

    def start(self) -> None:
        """Start the thread; it ends with the process."""
        start(self._run, "lag")

    def _run(self) -> None:
        while not self._consumer.finished:
            began = time.monotonic()
            try:
                self._report(self._consumer.lag())
            except OSError as error:
                self._report(reason(error))
            except TailsrvError as error:
                self._report(str(error))
            time.sleep(max(0.0, began + SECONDS - time.monotonic()))

    def _report(self, result: Lag | str) -> None:
        """Write the lag, or why it is not known."""
        if self._as_json:
            write_line(describe_json(result, dt.datetime.now(dt.UTC)))
        else:
            write_message("lag", describe(result))


def describe(result: Lag | str) -> str:
    """The line for people."""
    if isinstance(result, str):
        return f"unknown ({result})"
    if result.messages is None or result.seconds is None:
        return f"{result.bytes} bytes behind"
    return f"{result.bytes} bytes, {result.messages} messages, {result.seconds:.1f} s behind"


def describe_json(result: Lag | str, now: dt.datetime) -> str:
    """The line for programs, in ASCII; docs/tailsrv-cat.md documents its fields as a contract."""
    import json  # noqa: PLC0415 - msgspec does not escape what is not ASCII, and a terminal may read this

    report: dict[str, Any] = {"report": "lag", "time": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    if isinstance(result, str):
        report["error"] = result
    else:
        seconds = None if result.seconds is None else round(result.seconds, 3)
        report |= {"bytes": result.bytes, "messages": result.messages, "seconds": seconds}
    return json.dumps(report, separators=(",", ":"))
