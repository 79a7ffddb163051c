"""Runs dialogues on blocking sockets. Every wait ends at a deadline, or when another thread interrupts it."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic

from tailsrv_client.protocol.dialogue import Connect, Receive, Result, Send, Sleep
from tailsrv_client.resolver import Lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.protocol.dialogue import Dialogue, Step
    from tailsrv_formats.addresses import Address

FULL_SECONDS: Final = 0.05
"""The retry interval for a Unix socket with a full accept queue: connect fails at once, and no event reports room."""


class SuspendedError(Exception):
    """The caller's deadline has passed, or it was interrupted; the dialogue can be resumed."""


class Interrupt:
    """Ends the waits of another thread, now and for good."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_set = False
        # Made once: a reader that keeps up waits for every chunk.
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._watched = (-1, 0)
        # The descriptor lives as long as this object: a late `set` must not write to a reused descriptor number.
        # Not at the interpreter's exit, though: a logging handler still has to send then, after this would have run.
        weakref.finalize(self, os.close, self._fd).atexit = False

    def fileno(self) -> int:
        """Readable once it is set, and at each `nudge`."""
        return self._fd

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set

    def set(self) -> None:
        """End all waits. May be called by any thread."""
        self._is_set = True
        self.nudge()

    def nudge(self) -> None:
        """Wake the waiting thread, so that it checks what has changed."""
        with contextlib.suppress(BlockingIOError):  # the counter is full of nudges that were not read yet
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget the nudges that there were; what was set stays so."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        if self._is_set:
            self.nudge()

    def wait(self, deadline: float | None, fd: int = -1, events: int = 0) -> bool:
        """Wait for `events` of `fd`, for `deadline`, or for a nudge. Returns whether it were the events.

        Raises `SuspendedError` once this is set.
        """
        if self._watched != (fd, events):
            self._watch(fd, events)
        if self._is_set:
            raise SuspendedError
        left = None if deadline is None or deadline == math.inf else max(0.0, deadline - time.monotonic())
        ready = [one for one, _ in self._poll.poll(None if left is None else left * 1000)]
        if self._is_set:
            raise SuspendedError
        if self._fd in ready:
            self.clear()
        return fd in ready

    def _watch(self, fd: int, events: int) -> None:
        """Wait for `events` of `fd` from now on; -1: for nudges alone."""
        previous = self._watched[0]
        if previous >= 0:
            self._poll.unregister(previous)
        if fd >= 0:
            self._poll.register(fd, events)
        self._watched = (fd, events)


class ConnectionAttempt:
    """One attempt to connect, which can be suspended and resumed."""

    def __init__(self, step: Connect, interrupt: Interrupt) -> None:
        self._address = step.address
        self._interrupt = interrupt
        self._ends = time.monotonic() + step.seconds
        self._lookup: Lookup | None = None
        self._targets: list[tuple[int, Any]] | None = None
        self._socket: socket.socket | None = None
        self._socket_ends = 0.0
        if step.address.path is not None:
            self._targets = [(socket.AF_UNIX, step.address.path)]
        else:
            self._lookup = Lookup(step.address, interrupt.nudge)

    def resume(self, deadline: float | None) -> socket.socket:
        """The connection. Raises `SuspendedError` at `deadline`, `OSError`."""
        targets = self._targets = self._targets or self._look_up(deadline)
        while True:
            try:
                self._connect(targets, deadline)
            except OSError:
                self.close()
                del targets[0]
                if not targets or time.monotonic() >= self._ends:
                    raise
            else:
                sock, self._socket = self._socket, None
                assert sock is not None  # noqa: S101 - `_connect` made it
                return sock

    def close(self) -> None:
        """End the attempt."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _look_up(self, deadline: float | None) -> list[tuple[int, Any]]:
        assert self._lookup is not None  # noqa: S101 - a path needs none
        while not self._lookup.done:
            if not self._interrupt.wait(_earlier(deadline, self._ends)):
                _raise_if_late(deadline)
                if time.monotonic() >= self._ends and not self._lookup.done:
                    raise TimeoutError(
                        errno.ETIMEDOUT,
                        f"the name {self._address.host!r} was not resolved in time: check the resolver (DNS)",
                    )
        return self._lookup.targets()

    def _connect(self, targets: list[tuple[int, Any]], deadline: float | None) -> None:
        family, target = targets[0]
        if self._socket is None:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            now = time.monotonic()
            # An address that drops our packets must leave time for the other addresses.
            self._socket_ends = now + max(0.0, self._ends - now) / len(targets)
        sock = self._socket
        while True:
            code = sock.connect_ex(target)
            if code in {0, errno.EISCONN}:
                break
            if code == errno.EAGAIN and family == socket.AF_UNIX:
                ready = self._interrupt.wait(_earlier(deadline, time.monotonic() + FULL_SECONDS, self._socket_ends))
            elif code in {errno.EINPROGRESS, errno.EALREADY}:
                ready = self._interrupt.wait(_earlier(deadline, self._socket_ends), sock.fileno(), select.POLLOUT)
            else:
                raise OSError(code, os.strerror(code))
            if not ready:
                if time.monotonic() >= self._socket_ends:
                    raise TimeoutError(errno.ETIMEDOUT, "timed out")
                _raise_if_late(deadline)
        if family != socket.AF_UNIX:
            keep_alive(sock)


class Connection:
    """The connection of dialogues. `socket` is None while there is none.

    One thread uses it; `interrupt` may be set by another, and `shut_down` called.
    """

    def __init__(self) -> None:
        self.interrupt: Interrupt = Interrupt()
        self.socket: socket.socket | None = None
        self._guard = threading.Lock()
        self._blocking = False

    def adopt(self, sock: socket.socket) -> None:
        """Make `sock` the connection."""
        self.close()
        self.socket = sock
        self._blocking = False

    def set_blocking(self, blocking: bool) -> None:
        """Choose how the calls of the connection's socket wait; costs nothing where that does not change."""
        if self._blocking != blocking and self.socket is not None:
            self.socket.setblocking(blocking)
            self._blocking = blocking

    def close(self) -> None:
        """End the connection, if there is one."""
        # Under the guard: `stop` in another thread must not shut down a descriptor number that is already reused.
        with self._guard:
            sock, self.socket = self.socket, None
        if sock is not None:
            sock.close()

    def stop(self) -> None:
        """End every wait, also one in `recv`: now and for good. May be called by any thread."""
        self.interrupt.set()
        with self._guard:
            if self.socket is not None:
                with contextlib.suppress(OSError):  # not connected any more: what was wanted
                    self.socket.shutdown(socket.SHUT_RDWR)


class DialogueRunner(Generic[Result]):
    """Runs one dialogue on a connection: call `resume` until it returns the result."""

    def __init__(self, connection: Connection, dialogue: Dialogue[Result]) -> None:
        self._connection = connection
        self._dialogue = dialogue
        self._step: Step | None = None
        self._ends = 0.0
        self._left = b""
        self._attempt: ConnectionAttempt | None = None

    def resume(self, deadline: float | None = None) -> Result:
        """The dialogue's result. Raises the dialogue's errors, and `SuspendedError` at `deadline` or an interrupt."""
        try:
            if self._step is None:
                self._begin(next(self._dialogue))
            while True:
                try:
                    received = self._do(deadline)
                except OSError as error:
                    self._raise_if_stopped()
                    self._begin(self._dialogue.throw(error))
                else:
                    if not received:
                        self._raise_if_stopped()
                    self._begin(self._dialogue.send(received))
        except StopIteration as stop:
            result: Result = stop.value
            return result
        except SuspendedError:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up, and end the connection."""
        if self._attempt is not None:
            self._attempt.close()
            self._attempt = None
        self._dialogue.close()
        self._connection.close()

    def _raise_if_stopped(self) -> None:
        """Raise `SuspendedError` if `stop` caused what looks like a close or an error of the peer."""
        if self._connection.interrupt.is_set():
            raise SuspendedError

    def _begin(self, step: Step) -> None:
        self._step = step
        self._ends = time.monotonic() + step.seconds
        if isinstance(step, Connect):
            self._connection.close()
            self._attempt = ConnectionAttempt(step, self._connection.interrupt)
        elif isinstance(step, Send):
            self._left = step.data
            self._connection.set_blocking(False)
        elif isinstance(step, Sleep) and self._connection.socket is not None:
            self._connection.close()

    def _do(self, deadline: float | None) -> bytes:
        """Do the step. Raises `OSError` where it fails, `SuspendedError` where it has to wait for too long."""
        step, connection = self._step, self._connection
        if isinstance(step, Connect):
            assert self._attempt is not None  # noqa: S101 - `_begin` made it
            try:
                connection.adopt(self._attempt.resume(deadline))
            except OSError:
                self._attempt = None
                raise
            self._attempt = None
        elif isinstance(step, Sleep):
            while time.monotonic() < self._ends:
                connection.interrupt.wait(_earlier(deadline, self._ends))
                _raise_if_late(deadline)
        elif isinstance(step, Send):
            while self._left:
                with contextlib.suppress(BlockingIOError):
                    self._left = self._left[self._open_socket.send(self._left) :]
                if self._left:
                    self._wait(select.POLLOUT, deadline)
        elif isinstance(step, Receive):
            return self._receive(step, deadline)
        return b""

    def _receive(self, step: Receive, deadline: float | None) -> bytes:
        connection, sock = self._connection, self._open_socket
        if deadline is None and self._ends == math.inf:
            # Without a time limit the kernel waits for us: one system call for each chunk. `Connection.stop` sets the
            # interrupt before it shuts the socket down, so we either see the interrupt here or `recv` returns.
            connection.set_blocking(True)
            if connection.interrupt.is_set():
                raise SuspendedError
            return sock.recv(step.most)
        connection.set_blocking(False)
        while True:
            with contextlib.suppress(BlockingIOError):
                return sock.recv(step.most)
            self._wait(select.POLLIN, deadline)

    @property
    def _open_socket(self) -> socket.socket:
        if self._connection.socket is None:
            raise ConnectionError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._connection.socket

    def _wait(self, events: int, deadline: float | None) -> None:
        if not self._connection.interrupt.wait(_earlier(deadline, self._ends), self._open_socket.fileno(), events):
            if time.monotonic() >= self._ends:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            _raise_if_late(deadline)


class Channel:
    """A connection, and the one dialogue at a time that is held on it.

    A dialogue that has no result before the caller's deadline is continued by the next `run`. One thread uses it;
    `stop` may be called by any.
    """

    def __init__(self) -> None:
        self._connection = Connection()
        self._runner: DialogueRunner[Any] | None = None

    def run(self, make: Callable[[], Dialogue[Result]], deadline: float | None) -> Result:
        """The result of the dialogue under way, or of a new one. Raises what it raises, and `SuspendedError`."""
        if self._runner is None:
            self._runner = DialogueRunner(self._connection, make())
        try:
            result: Result = self._runner.resume(deadline)
        except SuspendedError:
            raise
        except BaseException:
            self._runner = None
            raise
        self._runner = None
        return result

    def disconnect(self) -> None:
        """End the connection; the next dialogue makes one."""
        self._connection.close()

    def stop(self) -> None:
        """Make a `run` in another thread raise `SuspendedError`, and all further ones."""
        self._connection.stop()

    def close(self) -> None:
        """Stop, and give up the dialogue under way. In the thread that runs it."""
        self._connection.interrupt.set()
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        self._connection.close()


def connect(address: Address, seconds: float) -> socket.socket:
    """A blocking connection to `address`, made within `seconds`, including name resolution. Raises `OSError`."""
    sock = ConnectionAttempt(Connect(address, seconds), Interrupt()).resume(None)
    sock.setblocking(True)
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Find a peer that has vanished within 60 s, while nothing is in flight."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(level, option, value)


def _earlier(deadline: float | None, *others: float) -> float:
    return min(others) if deadline is None else min(deadline, *others)


def _raise_if_late(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise SuspendedError
