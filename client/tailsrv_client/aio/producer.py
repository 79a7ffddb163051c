"""Producer on asyncio: the same session, outbox and spool, run by one task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Self

from tailsrv_client.aio.connection import AsyncConnection, readable
from tailsrv_client.aio.disk import Disk
from tailsrv_client.blocking.producer import IN_FLIGHT_BYTES, SPOOL_BYTES, full_message
from tailsrv_client.blocking.session_thread import SEND_BYTES, STEADY_SECONDS
from tailsrv_client.errors import GaveUpError, ProducerFull
from tailsrv_client.protocol.dialogue import retry
from tailsrv_client.protocol.outbox import Memory, Outbox
from tailsrv_client.protocol.ports import ACKNOWLEDGED
from tailsrv_client.protocol.servers import EndedError, Rotation, Servers, parse_addresses
from tailsrv_client.protocol.session import RECEIVE_BYTES, Session, check_name, greet
from tailsrv_client.spool import Spool
from tailsrv_formats.errors import TailsrvError, UsageError
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES, make_framing

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_formats.addresses import Address

LOG = logging.getLogger("tailsrv_client")


class AsyncProducer:
    """`tailsrv_client.Producer`, awaited.

    >>> async with AsyncProducer("fileserver:4323", "sensor-7") as producer:
    ...     receipt = await producer.send(b"21.5")  # waits for room only
    ...     print(await receipt)  # its offset in the file

    The parameters, methods and errors are those of `Producer`. A receipt is an `asyncio.Future`, and `on_failure` is
    called in the event loop.
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
        self._rotation = Rotation(Servers(parse_addresses(addresses, ACKNOWLEDGED), ACKNOWLEDGED))
        check_name(name)
        if spool is not None and not name:
            raise UsageError(
                "a spool needs a producer name, because the collator keeps no position for anonymous producers"
            )
        codec = make_framing(framing, max_message_bytes)
        self._wrap = codec.wrap
        self._bound = max_in_flight_bytes or (IN_FLIGHT_BYTES if spool is None else SPOOL_BYTES)
        self._failure: Exception | None = None
        self._on_failure = on_failure
        # Its messages are read by the first call that is awaited: that may take as long as a disk does.
        self._spool = None if spool is None else Spool(spool, name, codec, load=False)
        self._disk = None if self._spool is None else Disk(self._spool)
        self._outbox = Outbox(self._spool or Memory())
        self._session = Session(name, self._outbox)
        self._more = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outage = outage
        self._gives_up: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """See `Producer.in_flight`. What is in a spool counts from the first call that is awaited."""
        return self._held

    async def send(self, payload: bytes, timeout: float | None = None) -> asyncio.Future[int | None]:  # noqa: ASYNC109 - as `Producer.send`
        """See `Producer.send`. The future's result is that of a `Receipt`.

        With a spool it waits until the kernel has the message; several that are sent meanwhile are written at once.
        One that is cancelled while it is being written may have been taken.
        """
        try:
            message = self._wrap(payload)
        except TypeError:
            raise TypeError(f"a message is bytes, not {type(payload).__name__}") from None
        receipt: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        await self._put(message, receipt, timeout)
        return receipt

    async def send_framed(self, messages: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as `Producer.send_framed`
        """See `Producer.send_framed`."""
        await self._put(messages, None, timeout)

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as `Producer.flush`
        """See `Producer.flush`."""
        await self._start()
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await self._until(lambda: not self._held)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"{self._held} bytes are not acknowledged after {timeout} s") from None

    async def close(self, timeout: float | None = 0) -> int:  # noqa: ASYNC109 - as `Producer.close`
        """See `Producer.close`."""
        if self._task is not None:
            if timeout != 0:
                with contextlib.suppress(TimeoutError, TailsrvError):
                    await self.flush(timeout)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        left = self._held
        self._end(TailsrvError("the producer was closed before the message was acknowledged"))
        if self._disk is not None:
            await self._disk.close()
        return left

    async def _put(self, messages: bytes, receipt: asyncio.Future[int | None] | None, timeout: float | None) -> None:  # noqa: ASYNC109 - as above
        await self._start()
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await self._until(lambda: self._held + len(messages) <= self._bound or not self._held)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ProducerFull(full_message(self._held)) from None
        if self._disk is None:
            self._outbox.put(messages, receipt)
        else:
            try:
                await self._disk.append(self._outbox, messages, receipt)
            except OSError:
                self._changed.set()  # there is room for a smaller one
                raise
            if self._failure is not None:
                raise self._failure
        self._more.set()
        self._expect()

    @property
    def _held(self) -> int:
        return self._outbox.unacknowledged_bytes + (0 if self._disk is None else self._disk.waiting)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            await self.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while self._failure is None and not condition():
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def _start(self) -> None:
        if self._disk is not None and not self._disk.loaded:
            await self._disk.load()
        if self._task is None and self._failure is None:
            self._task = asyncio.create_task(self._run())
            self._expect()

    def _expect(self) -> None:
        """An acknowledgement is due, if something is unacknowledged."""
        if self._outage is not None and self._gives_up is None and self._held and self._failure is None:
            self._gives_up = asyncio.get_running_loop().call_later(self._outage, self._give_up)

    def _expect_no_more(self) -> None:
        if self._gives_up is not None:
            self._gives_up.cancel()
            self._gives_up = None

    def _give_up(self) -> None:
        last_error = self._rotation.last_error or f"{self._rotation.address} acknowledges nothing"
        error = GaveUpError(f"no acknowledgement for {self._outage} s ({last_error})")
        self._fail(error)
        if self._task is not None:
            self._task.cancel()

    def _fail(self, error: Exception) -> None:
        """The producer ends by itself."""
        if self._failure is None:
            if self._on_failure is not None:
                self._on_failure()
            else:
                # A program that only sends and never looks at a receipt would not notice.
                self._on_event(f"producer ended: {error}")
        self._end(error)

    def _end(self, error: Exception) -> None:
        self._expect_no_more()
        self._failure = self._failure or error
        self._outbox.fail(error)
        self._changed.set()

    async def _run(self) -> None:
        pause = 0.0
        try:
            while True:
                pause = await self._connect(pause)
        except Exception as error:
            self._fail(error)
            if not isinstance(error, TailsrvError):
                raise

    async def _connect(self, pause: float) -> float:
        """One connection, until it is lost. Returns the seconds to wait before the next one."""
        rotation, connection = self._rotation, AsyncConnection()
        await connection.run(retry(rotation, self._greeting, self._on_event, first=pause))
        begin = asyncio.get_running_loop().time()
        try:
            with connection.detach() as sock:
                await self._tidy()
                await self._serve(sock)
        except OSError as error:
            if asyncio.get_running_loop().time() - begin >= STEADY_SECONDS:
                rotation.worked()
            pause = rotation.failed(error)
            self._on_event(f"{rotation.last_error}; {rotation.next_attempt}")
        return pause

    def _greeting(self) -> Dialogue[None]:
        return greet(self._rotation, self._session, self._on_data)

    def _on_event(self, what: str) -> None:
        LOG.warning("%s", what)

    async def _serve(self, sock: socket.socket) -> None:
        """One connection, until it is lost (`OSError`)."""
        tasks = [asyncio.create_task(work(sock)) for work in (self._send, self._listen)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done:
                    task.result()  # both end by raising alone
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._session.has_more:
                data = bytes(await self._outgoing())
                # Counted before it is sent: the acknowledgement may arrive before `sock_sendall` returns.
                self._session.was_sent(len(data))
                await loop.sock_sendall(sock, data)
            self._more.clear()
            await self._more.wait()

    async def _outgoing(self) -> bytes | memoryview:
        if self._disk is None:
            return self._session.outgoing(SEND_BYTES)
        return await self._disk.run(self._session.outgoing, SEND_BYTES)

    async def _listen(self, sock: socket.socket) -> None:
        while True:
            await readable(sock)
            try:
                data = sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            if not data:
                raise EndedError("closed by the collator")
            self._on_data(data)
            await self._tidy()

    def _on_data(self, data: bytes) -> None:
        for acked in self._session.received(data):
            self._outbox.acknowledge(acked)
            self._rotation.worked()
            self._expect_no_more()
        self._expect()
        self._changed.set()

    async def _tidy(self) -> None:
        if self._disk is not None:
            await self._disk.tidy()
