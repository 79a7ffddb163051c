"""TailsrvHandler: what Python logs, as messages to a collator.

Law: logging never costs the application more than the time that it allows, and what could not be kept is counted and
told, in the stream itself, as soon as there is room again.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tailsrv_client.errors import ClientError, ProducerFull
from tailsrv_client.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailsrv.kit.addresses import Address

IN_FLIGHT_BYTES: Final = 8 << 20

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; the others come from `extra=`."""


class TailsrvHandler(logging.Handler):
    r"""Sends each record as one message to the collator at one of `addresses`, on the acknowledged lane.

    >>> logging.getLogger().addHandler(TailsrvHandler("fileserver:4323", "web-1"))

    With a `formatter` its text is the message, a line break in it written as ``\n``; otherwise a JSON object with
    time, level, logger, message, exception, and what was given as `extra`.

    A record that finds no room waits for `block_seconds` at most, then it is dropped. The next one that is sent is
    preceded by a record of the logger `tailsrv_client` that says how many were. `close` (which `logging.shutdown`
    calls as the program ends) waits for up to `close_seconds` for acknowledgements. Names and spool: see `Producer`.
    """

    def __init__(
        self,
        addresses: str | Iterable[str | Address],
        name: str = "",
        *,
        formatter: logging.Formatter | None = None,
        framing: str = "newline",
        block_seconds: float = 0.0,
        close_seconds: float = 2.0,
        max_in_flight_bytes: int = IN_FLIGHT_BYTES,
        spool: str | None = None,
        level: int | str = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        self.setFormatter(formatter)
        self.dropped = 0
        """Records that were dropped and not yet told of."""
        self._block_seconds, self._close_seconds = block_seconds, close_seconds
        self._counting = threading.Lock()
        self._escape = framing in {"newline", "nul"}
        self._producer: Producer | None = Producer(
            addresses, name, framing=framing, spool=spool, max_in_flight_bytes=max_in_flight_bytes
        )

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`. Records of `tailsrv_client` itself are left out: they would feed on themselves."""
        if record.name.startswith("tailsrv_client") or self._producer is None:
            return
        try:
            payload = self._payload(record)
        except Exception:  # noqa: BLE001 - logging's own way with a record that can't be formatted
            self.handleError(record)
            return
        try:
            if self.dropped:
                self._tell_dropped(self._producer)
            self._producer.send(payload, timeout=self._block_seconds)
        except (ProducerFull, ClientError, OSError, ValueError):
            # No room, no collator that takes us, a full disk under the spool, a payload that can't be framed.
            with self._counting:
                self.dropped += 1

    def _tell_dropped(self, producer: Producer) -> None:
        with self._counting:
            count = self.dropped
            if count:
                producer.send(self._payload(_notice(count)), timeout=0)
                self.dropped = 0

    def flush(self, timeout: float | None = None) -> None:
        """Wait for acknowledgements, for up to `timeout` (default: `close_seconds`) seconds."""
        if self._producer is not None:
            # What is left may still arrive; `close` gives it up and says how much it was.
            with contextlib.suppress(TimeoutError, ClientError):
                self._producer.flush(self._close_seconds if timeout is None else timeout)

    def close(self) -> None:
        """Wait as `flush` does, then stop. Raises nothing: the program goes on ending."""
        producer, self._producer = self._producer, None
        if producer is not None:
            lost = producer.close(self._close_seconds)
            if (lost or self.dropped) and logging.raiseExceptions and sys.stderr:
                with contextlib.suppress(OSError):  # as logging itself: nobody is left to be told
                    sys.stderr.write(
                        f"TailsrvHandler: {self.dropped} records dropped, {lost} bytes of others not acknowledged\n"
                    )
        super().close()

    def createLock(self) -> None:  # noqa: N802 - the name is of logging
        """None: threads that wait for room must not wait for each other, too. The producer has its own lock."""
        self.lock = None

    def _payload(self, record: logging.LogRecord) -> bytes:
        if self.formatter is not None:
            text = self.format(record)
            if self._escape:
                text = text.replace("\n", "\\n").replace("\0", "\\0")
            return text.encode("utf-8", "backslashreplace")
        facts: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            facts["exception"] = _PLAIN.formatException(record.exc_info)
        if record.stack_info:
            facts["stack"] = record.stack_info
        return msgspec.json.encode(facts, enc_hook=repr)


_PLAIN: Final = logging.Formatter()


def _notice(count: int) -> logging.LogRecord:
    facts: dict[str, Any] = {
        "name": "tailsrv_client",
        "levelno": logging.WARNING,
        "levelname": "WARNING",
        "msg": "%d log records were dropped: there was no room for them",
        "args": (count,),
        "created": time.time(),
        "dropped": count,
    }
    return logging.makeLogRecord(facts)


def _rfc3339(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"
