"""Producer: messages to a collator, each once, with a receipt that has its offset in the file."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Final, Self, cast

from tailsrv_client.blocking.session_thread import SessionThread
from tailsrv_client.errors import ProducerFull
from tailsrv_client.protocol.outbox import Memory, Outbox
from tailsrv_client.protocol.ports import ACKNOWLEDGED
from tailsrv_client.protocol.servers import Rotation, Servers, parse_addresses
from tailsrv_client.protocol.session import Session, check_name
from tailsrv_client.spool import Spool
from tailsrv_formats.errors import TailsrvError, UsageError
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES, make_framing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tailsrv_formats.addresses import Address

LOG = logging.getLogger("tailsrv_client")

IN_FLIGHT_BYTES: Final = 16 << 20
SPOOL_BYTES: Final = 256 << 20


class Receipt(Future["int | None"]):
    """The future of one message: a `concurrent.futures.Future`, also for `wait`, `as_completed`, `asyncio.wrap_future`.

    It is cheaper than a plain one: all receipts of a producer share one condition, and what most of them never need
    is made when it is needed. A message that was sent cannot be taken back: `cancel` returns False.
    """

    offset: int | None = None
    """The byte of the file at which the message starts. None: not known (yet)."""

    def __init__(self, guard: threading.Condition) -> None:  # `Future.__init__` would make a condition of its own
        self._condition = guard
        self._state = PENDING
        self._result = None
        self._exception = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of a `Future`
        if name in {"_waiters", "_done_callbacks"}:
            made: list[object] = []
            setattr(self, name, made)
            return made
        raise AttributeError(name)

    def done(self) -> bool:
        """Whether the message is acknowledged, or will never be."""
        return self._state == FINISHED

    def cancel(self) -> bool:
        """Return False: the message is on its way."""
        return False

    def result(self, timeout: float | None = None) -> int | None:
        """Wait for the acknowledgement. Returns the byte of the file at which the message starts.

        None: it is committed, but the line that said where was lost with a connection. Raises `TimeoutError` after
        `timeout` seconds, and what ended the producer.
        """
        self._wait(timeout)
        if self._exception is not None:
            raise self._exception
        return self.offset

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does. Returns why the message will not be acknowledged, or None when it is."""
        self._wait(timeout)
        return self._exception

    def add_done_callback(self, fn: Callable[[Receipt], object]) -> None:
        """Call `fn` with this when it is done: now, or in the producer's thread, where it must be quick."""
        super().add_done_callback(cast("Callable[[Future[int | None]], object]", fn))

    def set_result(self, result: int | None) -> None:
        """For the producer."""
        self.offset = self._result = result
        self._finish()

    def set_exception(self, exception: BaseException | None) -> None:
        """For the producer."""
        self._exception = exception
        self._finish()

    def _wait(self, timeout: float | None) -> None:
        with self._condition:
            # In a loop: the condition is notified for every receipt of the producer.
            if not self._condition.wait_for(self.done, timeout):
                raise TimeoutError(f"not acknowledged within {timeout} s")

    def _finish(self) -> None:
        """Under the producer's lock. The caller notifies the threads that wait in `result` once for each ACKED line."""
        self._state = FINISHED
        made = vars(self)
        if "_waiters" in made:
            for waiter in self._waiters:
                (waiter.add_result if self._exception is None else waiter.add_exception)(self)
        if "_done_callbacks" in made:
            self._invoke_callbacks()


class Producer:
    """Sends messages as producer `name` to the collator at one of `addresses` (``ADDR[,ADDR…]`` or a list).

    >>> with Producer("fileserver:4323", "sensor-7") as producer:
    ...     receipt = producer.send(b"21.5")
    ...     print(receipt.result())  # its offset in the file

    The producer reconnects without limit and continues at the byte that the collator names: no message is lost or
    repeated while the producer lives and, with `spool=FILE`, after a `kill -9`. An empty `name` is anonymous:
    messages that were unacknowledged when a connection was lost may be in the file twice.

    `max_in_flight_bytes` bounds what is not acknowledged: 16 MiB in memory, 256 MiB in a spool unless given. A host
    alone means port 4323. Leaving a `with` block flushes. Thread-safe. What ends it is raised by `send`, `flush` and
    the receipts, and `on_failure` is called then, in the producer's thread and under its lock, so it must not wait:
    `ProducerDiverged`, `ProducerRefused`,
    `WrongPortError` where no acknowledged port answers, `UnknownHostError`, and `GaveUpError` after `outage` seconds
    without an acknowledgement while something is unacknowledged (None: it never gives up). Making one raises
    `UsageError`, `CheckpointError` (for the spool).
    """

    def __init__(
        self,
        addresses: str | Iterable[str | Address],
        name: str,
        *,
        framing: str = "newline",
        spool: str | None = None,
        max_in_flight_bytes: int | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        outage: float | None = None,
        on_failure: Callable[[], object] | None = None,
    ) -> None:
        rotation = Rotation(Servers(parse_addresses(addresses, ACKNOWLEDGED), ACKNOWLEDGED))
        check_name(name)
        if spool is not None and not name:
            raise UsageError(
                "a spool needs a producer name, because the collator keeps no position for anonymous producers"
            )
        codec = make_framing(framing, max_message_bytes)
        self._wrap = codec.wrap
        self._bound = max_in_flight_bytes or (IN_FLIGHT_BYTES if spool is None else SPOOL_BYTES)
        self._lock = threading.RLock()
        self._guard = threading.Condition(self._lock)
        self._failure: Exception | None = None
        self._on_failure = on_failure
        self._closed = False
        self._is_putting = False
        self._spool = None if spool is None else Spool(spool, name, codec)
        self._outbox = Outbox(self._spool or Memory())
        try:
            self._session_thread = SessionThread(
                rotation,
                Session(name, self._outbox),
                guard=self._guard,
                acknowledged=self._outbox.acknowledge,
                failed=self._fail,
                on_event=self._warn,
                outage=outage,
            )
        except BaseException:  # no descriptor or thread to be had
            if self._spool is not None:
                self._spool.close()
            raise

    @property
    def in_flight(self) -> int:
        """Bytes that are not acknowledged; in the beginning those that were found in the spool."""
        return self._outbox.unacknowledged_bytes

    def send(self, payload: bytes, timeout: float | None = None) -> Receipt:
        """Take a message. Returns at once, unless too much is in flight: then waits for room.

        Raises `FramingError` for a payload that can't be framed, `ProducerFull` after `timeout` seconds without
        room, `OSError` when the spool can't take it.
        """
        try:
            message = self._wrap(payload)
        except TypeError:
            raise TypeError(f"a message is bytes, not {type(payload).__name__}") from None
        receipt = Receipt(self._guard)
        with self._lock:
            if (
                self._failure is not None
                or self._closed
                or self._is_putting
                or self._outbox.unacknowledged_bytes + len(message) > self._bound
            ):
                self._make_room(len(message), timeout)
            self._put(message, receipt)
        self._session_thread.wake()
        return receipt

    def send_framed(self, messages: bytes, timeout: float | None = None) -> None:
        """Send messages that already have their terminator or prefix, without receipts: for copying.

        They have to be whole: the next message would become part of an incomplete one. Waits and raises as `send`.
        """
        with self._lock:
            if (
                self._failure is not None
                or self._closed
                or self._is_putting
                or self._outbox.unacknowledged_bytes + len(messages) > self._bound
            ):
                self._make_room(len(messages), timeout)
            self._put(messages, None)
        self._session_thread.wake()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything is acknowledged. Raises `TimeoutError` after `timeout` seconds."""
        with self._guard:
            if not self._guard.wait_for(self._is_settled, timeout):
                raise TimeoutError(f"{self._outbox.unacknowledged_bytes} bytes are not acknowledged after {timeout} s")
            self._raise_failure()
            if self._outbox.unacknowledged_bytes:
                raise TailsrvError(
                    f"the producer was closed with {self._outbox.unacknowledged_bytes} bytes not acknowledged"
                )

    def close(self, timeout: float | None = 0) -> int:
        """Wait up to `timeout` seconds for acknowledgements (None: as long as it takes), then stop.

        Returns how many bytes are not acknowledged: they are lost, unless there is a spool, and their receipts raise.
        """
        with self._guard:
            self._guard.wait_for(self._is_settled, timeout)
            self._closed = True
        try:
            self._session_thread.close()
            with self._guard:
                left = self._outbox.unacknowledged_bytes
                self._outbox.fail(TailsrvError("the producer was closed before the message was acknowledged"))
                self._guard.notify_all()
        finally:
            if self._spool is not None:
                self._spool.close()
                self._spool = None
        return left

    def _forget(self) -> None:
        """In a forked child: close our copies of what is the parent's. Nothing else may be called afterwards."""
        self._session_thread.forget()

    @property
    def _thread(self) -> threading.Thread:
        """The thread that serves the connection, and in which receipts call back."""
        return self._session_thread.thread

    def _warn(self, text: str) -> None:
        """Report a lost or failed connection; sending continues."""
        LOG.warning("%s", text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """An exception that leaves the block does not wait for a collator that may not be there."""
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def _put(self, messages: bytes, receipt: Receipt | None) -> None:
        self._check_nesting()
        self._is_putting = True
        try:
            self._outbox.put(messages, receipt)
        finally:
            self._is_putting = False

    def _is_settled(self) -> bool:
        """Whether there is nothing to wait for, or no longer."""
        return self._failure is not None or self._closed or not self._outbox.unacknowledged_bytes

    def _make_room(self, size: int, timeout: float | None) -> None:
        def has_room() -> bool:
            return self._outbox.unacknowledged_bytes + size <= self._bound or not self._outbox.unacknowledged_bytes

        self._check_nesting()
        if not self._guard.wait_for(lambda: self._failure is not None or self._closed or has_room(), timeout):
            raise ProducerFull(full_message(self._outbox.unacknowledged_bytes))
        self._raise_failure()
        if self._closed:
            raise TailsrvError("the producer is closed")

    def _check_nesting(self) -> None:
        if self._is_putting:  # set by this same thread, because the lock is reentrant and we hold it
            raise TailsrvError("a signal handler or a finalizer called `send` while `send` was running in its thread")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._outbox.fail(error)
        if self._on_failure is not None:
            self._on_failure()
        else:
            # A program that only sends and never looks at a receipt would not notice.
            self._warn(f"producer ended: {error}")


def full_message(size: int) -> str:
    """The text of a `ProducerFull` for `size` unacknowledged bytes."""
    return f"{size} bytes are in flight and not acknowledged; check the collator, or raise max_in_flight_bytes"
