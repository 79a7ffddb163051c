"""Lines for a descriptor whose reader may be slow, stopped or gone: written at once or later, and never waited for.

What the reader does not take now waits in a bounded buffer and is written when there is room. When the buffer is full,
lines are dropped until all that waits is written; then one line says how many were dropped. A line whose beginning was
written is always finished before another one begins.

The description behind a descriptor such as standard error is shared with other processes, so O_NONBLOCK must not be
set on it. See `_Sink` for how a write that never blocks is done instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from tailsrv_runtime.reactor import HANGUP, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor

BUFFER_BYTES: Final = 1 << 18
"""How much may wait for a reader."""

STUCK_SECONDS: Final = 1.0
"""When a descriptor that claims to have room and takes nothing is tried again: a terminal with one free byte is so."""


class LineWriter:
    """Writes lines to a descriptor without ever blocking. Any thread may write.

    Before `attach` and after `detach`, what waits is tried again with each further line.
    """

    def __init__(self, fd: int, report: Callable[[int], str] = "{} lines dropped\n".format) -> None:
        """`report` makes the line that says how many lines were dropped. `fd` stays the caller's."""
        self._sink = _Sink(fd)
        self.report = report
        self._forget()

    def _forget(self) -> None:
        """Also what a forked child does: what waits, and the loop, are its parent's."""
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._rest: memoryview = memoryview(b"")
        self._reporting = 0  # of how many dropped lines `_rest` tells
        self.dropped = 0
        """How many lines were dropped since that was last reported."""
        self._reactor: Reactor | None = None
        self._thread = 0
        self._watching = False
        self._on_room: list[Callable[[], None]] = []

    after_fork = _forget

    # --- writing

    def write(self, line: str) -> None:
        """Write `line`, which has its end, now or when there is room; or drop it. Raises nothing."""
        data = line.encode("utf-8", "backslashreplace")
        with self._lock:
            self._flush()
            if self.dropped or self._size + len(data) > max(BUFFER_BYTES, len(data)):
                # More of them, until all that waits is written: one long gap, with one line that tells of it.
                self.dropped += 1
            else:
                self._queue.append(data)
                self._size += len(data)
                self._flush()
            if self._reactor is not None and not self._watching and self._waits():
                self._watching = True
                if threading.get_ident() == self._thread:
                    self._watch()
                else:
                    self._reactor.post(self._watch_from_loop)

    def drop(self, count: int) -> None:
        """Report `count` lines more as dropped: they got lost on their way here."""
        with self._lock:
            self.dropped += count
            self._flush()

    def flush(self) -> bool:
        """Try once more to write what waits; whether all that was to be written is."""
        with self._lock:
            self._flush()
            return not (self._queue or self._rest or self.dropped)

    def _flush(self) -> None:
        while self._rest or self._queue or self.dropped:
            if not self._rest:
                if self._queue:
                    data = self._queue.popleft()
                    self._size -= len(data)
                else:
                    self._reporting = self.dropped
                    data = self.report(self.dropped).encode("utf-8", "backslashreplace")
                self._rest = memoryview(data)
            try:
                written = self._sink.write(self._rest)
            except BlockingIOError:
                return
            except OSError:
                self._lose()
                return
            self._rest = self._rest[written:]
            if not self._rest:
                self.dropped -= self._reporting
                self._reporting = 0

    def _lose(self) -> None:
        """Nobody will take what waits: a closed pipe, a full disk."""
        self.dropped += len(self._queue)
        self._queue.clear()
        self._size = 0
        begun = isinstance(self._rest.obj, bytes) and len(self._rest) < len(self._rest.obj)
        if self._sink.pollable or not begun:
            self.dropped += 0 if self._reporting else 1
            self._rest, self._reporting = memoryview(b""), 0
        # Otherwise a file has the beginning of this line, and gets the rest when its disk has room again.

    # --- waiting for room

    @property
    def waits(self) -> bool:
        """Whether lines wait for a reader that may still take them."""
        with self._lock:
            return self._reactor is not None and self._waits()

    def _waits(self) -> bool:
        return self._sink.pollable and bool(self._queue or self._rest)

    def attach(self, reactor: Reactor) -> None:
        """Write what waits in the loop of `reactor` from now on, as soon as there is room. On the loop's thread."""
        with self._lock:
            self._reactor, self._thread = reactor, threading.get_ident()
            if self._waits():
                self._watching = True
                self._watch()

    def detach(self) -> None:
        """Leave the loop, and try once more to write what waits. To be called before the loop is closed."""
        with self._lock:
            if self._reactor is not None:
                self._reactor.unregister(self._sink.fd)
                self._reactor = None
            self._watching = False
            self._on_room.clear()
            self._flush()

    def call_when_room(self, callback: Callable[[], None]) -> None:
        """Call in the loop once nothing waits any more. Only while something does: see `waits`."""
        self._on_room.append(callback)

    def _watch(self) -> None:
        if self._reactor is not None and self._watching:
            try:
                self._reactor.register(self._sink.fd, WRITE, self._on_writable)
            except OSError:  # epoll can't wait for this one: it is tried with each line
                self._watching = False
                self._sink.pollable = False

    def _watch_from_loop(self) -> None:
        with self._lock:
            self._watch()

    def _on_writable(self, mask: int) -> None:
        with self._lock:
            before = self._size, len(self._rest)
            self._flush()
            if self._waits() and (self._size, len(self._rest)) == before:
                if mask & HANGUP:
                    self._lose()
                else:
                    self._pause()
            if self._waits():
                return
            if self._reactor is not None:
                self._reactor.unregister(self._sink.fd)
            self._watching = False
            ready, self._on_room = self._on_room, []
        for callback in ready:
            callback()

    def _pause(self) -> None:
        reactor = self._reactor
        if reactor is not None:
            reactor.unregister(self._sink.fd)
            reactor.call_later(STUCK_SECONDS, self._watch_from_loop)

    def close(self) -> None:
        """Release what was opened for it. What waits is lost."""
        self._sink.close()

    def descriptors(self) -> tuple[int, ...]:
        """What it needs open, for a forked child that closes all else."""
        return (self._sink.fd,)


class _Sink:
    """A descriptor, and a write to it that takes what there is room for and never blocks.

    - Pipes and terminals are reopened: the new description has O_NONBLOCK, and the shared one stays as it is.
    - Sockets can't be reopened, but MSG_DONTWAIT says the same for one call.
    - Files have no reader to wait for. They are written through the shared description, whose offset processes share.
    - Where reopening is refused (after a change of user, without /proc): RWF_NOWAIT, where the kernel has that (6.4 for
      pipes), or else a look before a write of no more than a pipe takes at once when there is any room.
    """

    def __init__(self, fd: int) -> None:
        self._shared = fd
        self.fd = fd
        """To wait for, and not `fd` of the constructor where that could be taken for another one."""
        self.pollable = False
        """Whether room can be waited for."""
        self.write: Callable[[memoryview], int] = self._write
        self._socket: socket.socket | None = None
        self._no_wait = True
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                self._use_socket()
            elif stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd)):
                self.pollable = True
                self.write = self._write_politely
                self._reopen()
            elif not stat.S_ISREG(mode):
                self.write = self._write_politely
        except OSError:
            pass  # it is closed, or can't be reopened

    def _use_socket(self) -> None:
        self._socket = socket.socket(fileno=os.dup(self._shared))
        self.fd = self._socket.fileno()
        self.pollable = True
        self.write = self._send

    def _reopen(self) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self.fd = os.open(f"/proc/self/fd/{self._shared}", flags)
        self.write = self._write

    def _write(self, data: memoryview) -> int:
        return os.write(self.fd, data)

    def _send(self, data: memoryview) -> int:
        assert self._socket is not None  # noqa: S101 - for the type checker: it is a socket's
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _write_politely(self, data: memoryview) -> int:
        if self._no_wait:
            try:
                return os.pwritev(self.fd, [data], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE, errno.ENOSYS):
                    raise
                self._no_wait = False
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data[: select.PIPE_BUF])

    def close(self) -> None:
        """Close what was opened here."""
        if self._socket is not None:
            self._socket.close()
        elif self.fd != self._shared:
            with contextlib.suppress(OSError):  # a forked child may have closed all that it knows not
                os.close(self.fd)
