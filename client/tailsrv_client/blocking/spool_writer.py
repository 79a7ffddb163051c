"""Appends messages to a spool in one thread, so that a slow disk does not delay the threads that log."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.errors import ProducerFull
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.blocking.producer import Producer

BATCH_BYTES: Final = 1 << 18
GRACE_SECONDS: Final = 1.0
"""How long the thread may take to end when there is no more time for acknowledgements: it syncs the spool."""

RETRY_SECONDS: Final = 0.5
"""How soon a full disk, or a full spool, is tried again."""


class SpoolWriter:
    """Gives messages to `producer`, which has a spool. Up to `bound` bytes of them wait in memory."""

    def __init__(self, producer: Producer, bound: int, lost: Callable[[int], None]) -> None:
        """`lost(N)` is called, in the thread, when N messages can't be kept."""
        self._producer, self._bound, self._lost = producer, bound, lost
        self._changed = threading.Condition(threading.Lock())
        self._queue: list[bytes] = []
        self._bytes = 0
        self._given = self._kept = 0
        """How many messages were given to this, and how many of them are with the producer, or were lost."""
        self._slow = False
        """Whether the disk took longer than a caller wanted to wait, and there is still something to append."""
        self._failure: TailsrvError | None = None
        self._close_by: float | None = None
        self.thread: threading.Thread = start(self._run, "tailsrv-handover")

    def send(self, message: bytes, timeout: float) -> None:
        """Take a message, and wait up to `timeout` seconds until the kernel has it.

        Where one has waited in vain the next ones don't, until the disk has caught up. Raises `ProducerFull` when
        there is no room after `timeout` seconds, and what has ended the producer.
        """
        changed = self._changed
        deadline = time.monotonic() + timeout
        if not changed.acquire(timeout=max(timeout, 0.001)):
            raise ProducerFull("no room within the timeout: other threads wait for the disk, too")
        try:
            if not changed.wait_for(lambda: self._has_room(len(message)), timeout):
                raise ProducerFull(f"{self._bytes} bytes wait for the disk of the spool; it is too slow or full")
            if self._failure is not None:
                raise self._failure
            if self._close_by is not None:
                raise TailsrvError("the handler is closed")
            self._queue.append(message)
            self._bytes += len(message)
            self._given += 1
            number = self._given
            changed.notify_all()
            rest = deadline - time.monotonic()
            if not self._slow and rest > 0 and not changed.wait_for(lambda: self._kept >= number, rest):
                self._slow = True
        finally:
            changed.release()

    def close(self, timeout: float) -> None:
        """Append what is waiting, then close the producer; wait `timeout` seconds for that, and a moment more."""
        with self._changed:
            self._close_by = time.monotonic() + timeout
            self._changed.notify_all()
        self.thread.join(timeout + GRACE_SECONDS)

    def flush(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until all is acknowledged. Raises `TimeoutError`, `TailsrvError`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            number = self._given
            if not self._changed.wait_for(lambda: self._kept >= number, timeout):
                raise TimeoutError(f"{self._bytes} bytes wait for the disk after {timeout} s")
        self._producer.flush(max(0.0, deadline - time.monotonic()))

    @property
    def waiting(self) -> int:
        """Bytes that are not with the producer yet."""
        return self._bytes

    def _is_over(self) -> bool:
        """Wait a little. Returns whether there is no more time."""
        with self._changed:
            if self._close_by is None:
                self._changed.wait_for(lambda: self._close_by is not None, RETRY_SECONDS)
            else:
                self._changed.wait(min(RETRY_SECONDS, max(0.0, self._close_by - time.monotonic())) / 4)
            return self._close_by is not None and time.monotonic() >= self._close_by

    def _has_room(self, size: int) -> bool:
        return (
            self._failure is not None
            or self._close_by is not None
            or self._bytes + size <= self._bound
            or not self._bytes
        )

    def _run(self) -> None:
        while batch := self._next():
            data = b"".join(batch)
            kept = self._append(data)
            with self._changed:
                self._kept += len(batch)
                self._bytes -= len(data)
                self._slow = self._slow and bool(self._queue)
                self._changed.notify_all()
            if not kept:
                self._lost(len(batch))
        assert self._close_by is not None  # noqa: S101 - only a closed one has nothing more
        self._producer.close(max(0.0, self._close_by - time.monotonic()))

    def _next(self) -> list[bytes]:
        """What to append next; nothing when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._close_by is not None)
            size = number = 0
            while number < len(self._queue) and (not number or size + len(self._queue[number]) <= BATCH_BYTES):
                size += len(self._queue[number])
                number += 1
            batch, self._queue = self._queue[:number], self._queue[number:]
            return batch

    def _append(self, data: bytes) -> bool:
        """Give `data` to the producer, as soon as it has room. Returns False where it never will."""
        while True:
            try:
                self._producer.send_framed(data, 0 if self._close_by is not None else RETRY_SECONDS)
            except (ProducerFull, OSError):  # the collator is away, or the disk is full: both pass
                if self._is_over():
                    return False
            except TailsrvError as error:
                with self._changed:
                    self._failure = error
                return False
            else:
                return True
