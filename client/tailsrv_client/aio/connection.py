"""Connections for asyncio, as plain non-blocking sockets: no buffers of asyncio's own, so no limits of theirs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tailsrv_client.blocking.connection import FULL_SECONDS, keep_alive
from tailsrv_client.protocol.dialogue import Connect, Receive, Sleep
from tailsrv_client.resolver import Lookup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tailsrv_client.protocol.dialogue import Dialogue, Step

Result = TypeVar("Result")

_loops: Final = weakref.WeakKeyDictionary[socket.socket, asyncio.AbstractEventLoop]()
"""The loops that may watch our sockets."""

_waiting: Final = weakref.WeakKeyDictionary[socket.socket, asyncio.Future[None]]()
"""The futures of coroutines that wait for a socket."""


class AsyncConnection:
    """The connection of dialogues, awaited: see `tailsrv_client.blocking.connection.Connection`."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None

    async def run(self, dialogue: Dialogue[Result]) -> Result:
        """The dialogue's result. The connection is open after a return, and closed after an error or a cancellation."""
        try:
            step = next(dialogue)
            while True:
                try:
                    received = await self.do(step)
                except OSError as error:
                    step = dialogue.throw(error)
                else:
                    step = dialogue.send(received)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        except BaseException:
            dialogue.close()
            self.close()
            raise

    def close(self) -> None:
        """End the connection, if there is one."""
        if self.socket is not None:
            end(self.socket)
            self.socket = None

    def detach(self) -> socket.socket:
        """Hand the open socket over to the caller."""
        sock, self.socket = self.socket, None
        assert sock is not None  # noqa: S101 - a dialogue has just connected
        return sock

    async def do(self, step: Step) -> bytes:
        """Do one step of a dialogue. Raises `OSError`."""
        if isinstance(step, Sleep):
            self.close()
            await asyncio.sleep(step.seconds)
            return b""
        if isinstance(step, Connect):
            self.close()
            async with _limit(step.seconds):
                self.socket = await _dial(step)
            return b""
        if self.socket is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        loop = asyncio.get_running_loop()
        async with _limit(step.seconds):
            if isinstance(step, Receive):
                return await loop.sock_recv(self.socket, step.most)
            await loop.sock_sendall(self.socket, step.data)
        return b""


class StoppedError(Exception):
    """The channel was stopped; no caller of the library sees this."""


class AsyncChannel:
    """A connection, and the one dialogue at a time that is held on it: see `tailsrv_client.blocking.connection`.

    A `run` that is cancelled is continued by the next one: bytes are received when they are there and not before, and
    every other step continues in a task of its own. All methods are called in the loop's thread.
    """

    def __init__(self) -> None:
        self._connection = AsyncConnection()
        self._dialogue: Dialogue[Any] | None = None
        self._step: Step | None = None
        self._ends = 0.0
        self._task: ResumableTask[bytes] | None = None
        self._stopped = False

    async def run(self, make: Callable[[], Dialogue[Result]]) -> Result:
        """The result of the dialogue under way, or of a new one. Raises what it raises, and `StoppedError`."""
        if self._stopped:
            raise StoppedError
        try:
            if self._dialogue is None:
                self._dialogue = make()
                self._begin(next(self._dialogue))
            while True:
                try:
                    received = await self._do()
                except OSError as error:
                    self._raise_if_stopped()
                    self._begin(self._dialogue.throw(error))
                else:
                    if not received:
                        self._raise_if_stopped()
                    self._begin(self._dialogue.send(received))
        except StopIteration as stop:
            self._dialogue = None
            result: Result = stop.value
            return result
        except (asyncio.CancelledError, StoppedError):
            raise
        except BaseException:
            self._give_up()
            raise

    def disconnect(self) -> None:
        """End the connection; the next dialogue makes one."""
        self._connection.close()

    def stop(self) -> None:
        """Make a pending `run` raise `StoppedError`, and all further ones."""
        self._stopped = True
        if self._task is not None:
            self._task.stop()
        self._connection.close()

    def close(self) -> None:
        """Stop, and give up the dialogue under way."""
        self.stop()
        self._give_up()

    def _give_up(self) -> None:
        """End the dialogue under way, and its connection."""
        dialogue, self._dialogue = self._dialogue, None
        if dialogue is not None:
            dialogue.close()
        self._connection.close()

    def _raise_if_stopped(self) -> None:
        """Raise `StoppedError` if `stop` caused what looks like a close or an error of the peer."""
        if self._stopped:
            raise StoppedError

    def _begin(self, step: Step) -> None:
        self._step = step
        self._ends = time.monotonic() + step.seconds

    async def _do(self) -> bytes:
        step = self._step
        if isinstance(step, Receive):
            return await self._receive(step)
        if self._task is None:
            assert step is not None  # noqa: S101 - `_begin` has set it
            self._task = ResumableTask(self._connection.do(step))
        task = self._task
        await task.wait()
        self._task = None
        received = task.result()
        if received is None:
            raise StoppedError
        return received

    async def _receive(self, step: Receive) -> bytes:
        sock = self._connection.socket
        if sock is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        while True:
            with contextlib.suppress(BlockingIOError):
                return sock.recv(step.most)
            async with _limit(math.inf if self._ends == math.inf else self._ends - time.monotonic()):
                await readable(sock)


@contextlib.asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, whose error has no text."""
    try:
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            yield
    except TimeoutError as error:
        if error.errno is not None:
            raise
        raise TimeoutError(errno.ETIMEDOUT, "timed out") from None


async def _dial(step: Connect) -> socket.socket:
    address, ends = step.address, time.monotonic() + step.seconds
    if address.path is not None:
        return await _connect(socket.AF_UNIX, address.path)
    loop = asyncio.get_running_loop()
    found = asyncio.Event()
    # A thread of its own, not the loop's executor: the end of the loop would wait for one that hangs.
    lookup = Lookup(address, lambda: loop.call_soon_threadsafe(found.set))
    while not lookup.done:
        await found.wait()
    targets = lookup.targets()
    for number, (family, target) in enumerate(targets):
        left = len(targets) - number
        try:
            # An address that drops our packets must leave time for the other addresses.
            async with asyncio.timeout((ends - time.monotonic()) / left if left > 1 else None):
                return await _connect(family, target)
        except OSError:
            if left == 1:
                raise
    raise OSError(errno.EADDRNOTAVAIL, "the name has no address")


async def _connect(family: int, target: Any) -> socket.socket:  # noqa: ANN401 - what getaddrinfo calls an address
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    _loops[sock] = asyncio.get_running_loop()
    try:
        await _connected(sock, target)
        if family != socket.AF_UNIX:
            keep_alive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected(sock: socket.socket, target: Any) -> None:  # noqa: ANN401 - as above
    while (code := sock.connect_ex(target)) not in {0, errno.EISCONN}:
        if code == errno.EAGAIN and sock.family == socket.AF_UNIX:
            await asyncio.sleep(FULL_SECONDS)
        elif code in {errno.EINPROGRESS, errno.EALREADY}:
            await _ready(sock, write=True)
        else:
            raise OSError(code, os.strerror(code))


async def readable(sock: socket.socket) -> None:
    """Wait until `sock` can be read. Nothing is read: a caller that is cancelled here has lost no byte.

    Raises `OSError` when `sock` is ended meanwhile.
    """
    await _ready(sock, write=False)


def end(sock: socket.socket) -> None:
    """Close `sock`, and wake the coroutine that waits for it.

    The loop has to forget it first, because it watches descriptor numbers, and the next socket may get the same one.
    """
    if sock.fileno() < 0:
        return
    loop = _loops.get(sock)
    if loop is not None and not loop.is_closed():
        loop.remove_reader(sock)
        loop.remove_writer(sock)
    sock.close()
    ready = _waiting.pop(sock, None)
    if ready is not None and not ready.done():
        ready.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed by this client"))


async def _ready(sock: socket.socket, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    (loop.add_writer if write else loop.add_reader)(sock, _set, ready)
    _waiting[sock] = ready
    try:
        await ready
    finally:
        if sock.fileno() >= 0:
            (loop.remove_writer if write else loop.remove_reader)(sock)
            _waiting.pop(sock, None)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class ResumableTask(Generic[Result]):
    """A coroutine that continues while its caller is cancelled and waits again; `stop` ends it.

    So a caller that gives each wait a tenth of a second gets a connection that takes longer, all the same.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._task = asyncio.get_running_loop().create_task(coroutine)
        # Retrieve the error of an abandoned task: asyncio would log it as never retrieved.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def wait(self, seconds: float | None = None) -> bool:
        """Whether it is over, after `seconds` at most."""
        return bool((await asyncio.wait({self._task}, timeout=seconds))[0])

    def result(self) -> Result | None:
        """What it returned, when it is over; None when it was stopped. Raises what it raised."""
        return None if self._task.cancelled() else self._task.result()

    def stop(self) -> None:
        """End it. In the loop's thread."""
        self._task.cancel()
