"""TailsrvHandler: what Python logs, as messages to a collator.

Law: logging never costs the application more than the time that it allows, and dropped records are counted
and reported, in the stream itself, as soon as there is room again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from tailsrv_client.blocking.log_records import as_json, as_text
from tailsrv_client.blocking.producer import Producer
from tailsrv_client.blocking.spool_writer import SpoolWriter
from tailsrv_client.errors import ProducerFull
from tailsrv_formats.errors import TailsrvError
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES, make_framing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tailsrv_formats.addresses import Address

IN_FLIGHT_BYTES: Final = 8 << 20

SPOOL_SECONDS: Final = 0.05
"""The default `block_seconds` with a spool."""

FRAME_BYTES: Final = 16
"""More than any framing adds to a payload."""

U16_BYTES: Final = 0xFFFF

_HANDLERS: Final = weakref.WeakSet["TailsrvHandler"]()


class _Busy(threading.local):
    """Whether this thread is within `emit`."""

    busy = False


class TailsrvHandler(logging.Handler):
    r"""Sends each record as one message to the collator at one of `addresses`, on the acknowledged port.

    >>> logging.getLogger().addHandler(TailsrvHandler("fileserver:4323", "web-1"))

    With a `formatter` its text is the message, a line break in it written as ``\\n``; otherwise a JSON object with
    time, level, logger, message, exception, and what was given as `extra`. Every record can be sent: see
    `tailsrv_client.blocking.log_records`. One that is longer than `max_message_bytes` is cut, and says so.

    A record that finds no room waits for `block_seconds` at most, then it is dropped. The next one that is sent is
    preceded by a record of the logger `tailsrv_client` that says how many were. `close` (which `logging.shutdown`
    calls as the program ends) waits for up to `close_seconds` for acknowledgements. Names and spool: see `Producer`.

    With a spool a thread appends the records, and `block_seconds` (then 0.05) also is how long a record waits until
    the kernel has it: a slower disk delays no caller, and records that are still in memory are lost at a `kill -9`.

    In a forked child the handler is anonymous and has no spool: the name and the spool stay with the parent.
    """

    def __init__(
        self,
        addresses: str | Iterable[str | Address],
        name: str = "",
        *,
        formatter: logging.Formatter | None = None,
        framing: str = "newline",
        block_seconds: float | None = None,
        close_seconds: float = 2.0,
        max_in_flight_bytes: int = IN_FLIGHT_BYTES,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        spool: str | None = None,
        level: int | str = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        self.setFormatter(formatter)
        self.dropped: int = 0
        """Records that were dropped and not yet reported."""
        self._block_seconds = block_seconds if block_seconds is not None else SPOOL_SECONDS if spool else 0.0
        self._close_seconds = close_seconds
        self._counting = threading.RLock()
        self._escape = framing in {"newline", "nul"}
        self._limit = min(max_message_bytes - FRAME_BYTES, U16_BYTES if framing == "u16be" else max_message_bytes)
        self._wrap = make_framing(framing, max_message_bytes).wrap
        self._addresses = addresses if isinstance(addresses, str) else tuple(addresses)
        self._options: dict[str, Any] = {
            "framing": framing,
            "max_in_flight_bytes": max_in_flight_bytes,
            "max_message_bytes": max_message_bytes,
        }
        self._spool = spool
        self._deferred: deque[bytes] = deque()
        """Payloads of records that were logged while another one was being handed on, in the same thread."""
        self._here = _Busy()
        self._spool_writer: SpoolWriter | None = None
        self._producer: Producer | None = Producer(self._addresses, name, spool=spool, **self._options)
        if spool is not None:
            self._spool_writer = SpoolWriter(self._producer, max_in_flight_bytes, self._count)
        self._send: Callable[[bytes, float], None] | None = (
            self._producer.send_framed if self._spool_writer is None else self._spool_writer.send
        )
        _HANDLERS.add(self)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`. Records of `tailsrv_client` itself are left out: they would feed on themselves."""
        if record.name == "tailsrv_client" or record.name.startswith("tailsrv_client."):
            return
        try:
            payload = self._payload(record)
        except Exception:  # noqa: BLE001 - an error of ours, reported in logging's own way
            self._count(1)
            self.handleError(record)
            return
        if self._here.busy or threading.current_thread() in self._own_threads():
            # Logged by a signal handler or a finalizer, in the middle of what a record goes through.
            self._deferred.append(payload)
            return
        self._here.busy = True
        try:
            self._forward(payload)
            self._forward_deferred()
        finally:
            self._here.busy = False

    def flush(self, timeout: float | None = None) -> None:
        """Wait for acknowledgements, for up to `timeout` (default: `close_seconds`) seconds."""
        self._forward_deferred()
        waiting = self._spool_writer or self._producer
        if waiting is not None:
            # What is left may still arrive; `close` gives it up and says how much it was.
            with contextlib.suppress(TimeoutError, TailsrvError):
                waiting.flush(self._close_seconds if timeout is None else timeout)

    def close(self) -> None:
        """Wait as `flush` does, then stop. Raises nothing, so that the program's exit continues."""
        self._forward_deferred()
        with self._counting:
            producer, self._producer, self._send = self._producer, None, None
        if producer is not None:
            left = self._close(producer)
            if (left or self.dropped) and logging.raiseExceptions and sys.stderr:
                with contextlib.suppress(OSError, ValueError):  # as logging does: it can be reported nowhere
                    sys.stderr.write(f"TailsrvHandler: {self.dropped} records dropped{left}\n")
        super().close()

    def createLock(self) -> None:  # noqa: N802 - the name is of logging
        """None: threads that wait for room must not wait for each other, too. The producer has its own lock."""
        self.lock: threading.RLock | None = None

    def _close(self, producer: Producer) -> str:
        """Close it. Returns what to say of what is left."""
        if self._spool_writer is None:
            left = producer.close(self._close_seconds)
            return f", {left} more bytes not acknowledged" if left else ""
        self._spool_writer.close(self._close_seconds)
        waiting, kept = self._spool_writer.waiting, producer.in_flight
        slow = f", {waiting} more bytes lost: the disk of {self._spool} is too slow" if waiting else ""
        return slow + (f", {kept} more bytes kept in {self._spool} for the next run" if kept else "")

    def _payload(self, record: logging.LogRecord) -> bytes:
        if self.formatter is not None:
            return as_text(record, self.formatter, self._limit, escape=self._escape)
        return as_json(record, self._limit)

    def _forward(self, payload: bytes) -> None:
        send = self._send  # read once: `close` may set it to None in another thread
        if send is None:
            self._count(1)
            return
        try:
            if self.dropped:
                self._report_dropped(send)
            send(self._wrap(payload), self._block_seconds)
        except (ProducerFull, TailsrvError, OSError, ValueError):
            # No room, no collator that takes us, a full disk under the spool, a payload that can't be framed.
            self._count(1)

    def _forward_deferred(self) -> None:
        while self._deferred:
            try:
                payload = self._deferred.popleft()
            except IndexError:
                return  # another thread has it
            self._forward(payload)

    def _report_dropped(self, send: Callable[[bytes, float], None]) -> None:
        with self._counting:
            count = self.dropped
            if count:
                send(self._wrap(self._payload(_notice(count))), 0)
                self.dropped = 0

    def _count(self, dropped: int) -> None:
        with self._counting:
            self.dropped += dropped

    def _own_threads(self) -> tuple[threading.Thread, ...]:
        producer, spool_writer = self._producer, self._spool_writer
        threads = (producer and producer._thread, spool_writer and spool_writer.thread)  # noqa: SLF001 - ours
        return tuple(thread for thread in threads if thread)

    def _leave_to_parent(self) -> None:
        """In a forked child: begin again with the first record, under no name."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer._forget()  # noqa: SLF001 - ours
        self._counting = threading.RLock()
        self._here = _Busy()
        self._deferred.clear()
        self.dropped = 0
        self._spool = self._spool_writer = None
        self._send = self._begin_in_child

    def _begin_in_child(self, message: bytes, timeout: float) -> None:
        with self._counting:
            if self._producer is None and self._send is not None:
                self._producer = Producer(self._addresses, "", **self._options)
                self._send = self._producer.send_framed
            send = self._send
        if send is None:
            raise TailsrvError("the handler is closed")
        send(message, timeout)


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


def _leave_to_parent() -> None:
    for handler in list(_HANDLERS):
        handler._leave_to_parent()  # noqa: SLF001 - ours


os.register_at_fork(after_in_child=_leave_to_parent)
