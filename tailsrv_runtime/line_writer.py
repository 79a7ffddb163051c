"""Lines to a descriptor whose reader may be slow, stopped or gone: written now or later, without ever blocking.

Lines that the reader does not accept now wait in a bounded buffer, and are written when there is room. When the buffer
is full, lines are dropped until it is empty; then one line states how many were dropped. A line whose beginning was
written is always completed before the next one begins.

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
"""Limit of the buffer."""

STUCK_SECONDS: Final = 1.0
"""Pause after a descriptor that is writable accepted nothing. (A terminal with one free byte behaves so.)"""


class LineWriter:
    """Writes lines to a descriptor without ever blocking. Any thread may write.

    Before `attach` and after `detach`, each further line is the occasion to write the waiting ones.
    """

    def __init__(self, fd: int, report: Callable[[int], str] = "{} lines dropped\n".format) -> None:
        """``report(count)`` is the line that states how many were dropped. `fd` is not closed here."""
        self._sink = _Sink(fd)
        self.report = report
        self._forget()

    def _forget(self) -> None:
        """Empty the buffer and leave the loop. A forked child does this, too: both belong to its parent."""
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._rest: memoryview = memoryview(b"")
        self._reporting = 0  # the count in the report that `_rest` is, if it is one
        self.dropped = 0
        """Lines that were dropped since the last report."""
        self._reactor: Reactor | None = None
        self._thread = 0
        self._watching = False
        self._on_room: list[Callable[[], None]] = []

    after_fork = _forget

    # --- writing

    def write(self, line: str) -> None:
        """Write `line`, which includes its line end, now or when there is room; or drop it. Raises nothing."""
        data = line.encode("utf-8", "backslashreplace")
        with self._lock:
            self._flush()
            if self.dropped or self._size + len(data) > max(BUFFER_BYTES, len(data)):
                # Drop until the buffer is empty: one long gap with one report, and not many short ones.
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
        """Add `count` to the dropped lines: the caller has lost them."""
        with self._lock:
            self.dropped += count
            self._flush()

    def flush(self) -> bool:
        """Try to write the waiting lines. Returns whether all lines and reports are written."""
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
        """Drop the waiting lines: the pipe is closed, or the disk full."""
        self.dropped += len(self._queue)
        self._queue.clear()
        self._size = 0
        begun = isinstance(self._rest.obj, bytes) and len(self._rest) < len(self._rest.obj)
        if self._sink.pollable or not begun:
            self.dropped += 0 if self._reporting else 1
            self._rest, self._reporting = memoryview(b""), 0
        # Otherwise a file has the beginning of this line; the rest follows when its disk has space again.

    # --- waiting for room

    @property
    def waits(self) -> bool:
        """Whether lines wait for a reader that may still accept them."""
        with self._lock:
            return self._reactor is not None and self._waits()

    def _waits(self) -> bool:
        return self._sink.pollable and bool(self._queue or self._rest)

    def attach(self, reactor: Reactor) -> None:
        """Write waiting lines in the loop of `reactor` from now on. Call it on the loop's thread."""
        with self._lock:
            self._reactor, self._thread = reactor, threading.get_ident()
            if self._waits():
                self._watching = True
                self._watch()

    def detach(self) -> None:
        """Leave the loop, and try once more to write the waiting lines. Call it before the loop is closed."""
        with self._lock:
            if self._reactor is not None:
                self._reactor.unregister(self._sink.fd)
                self._reactor = None
            self._watching = False
            self._on_room.clear()
            self._flush()

    def call_when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop once no line waits any more. Only valid while some do: see `waits`."""
        self._on_room.append(callback)

    def _watch(self) -> None:
        if self._reactor is not None and self._watching:
            try:
                self._reactor.register(self._sink.fd, WRITE, self._on_writable)
            except OSError:  # epoll does not support it: try with each further line instead
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
        """Close the descriptors that were opened here. Waiting lines are lost."""
        self._sink.close()

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that it needs, for a forked child that closes all others."""
        return (self._sink.fd,)


class _Sink:
    """A descriptor, and a write to it that writes as much as there is room for and never blocks.

    - Pipes and terminals are reopened: the new description has O_NONBLOCK, and the shared one stays as it is.
    - Sockets cannot be reopened, but MSG_DONTWAIT does the same for one call.
    - Files have no reader to wait for. They are written through the shared description, whose offset processes share.
    - If reopening fails (after a change of user, without /proc): RWF_NOWAIT, if the kernel supports it (6.4 for pipes),
      or else poll(2), and a write of at most PIPE_BUF bytes, which a pipe that has room accepts at once.
    """

    def __init__(self, fd: int) -> None:
        self._shared = fd
        self.fd = fd
        """The descriptor to wait for: the reopened one, if there is one."""
        self.pollable = False
        """Whether epoll can report room."""
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
            pass  # closed, or cannot be reopened

    def _use_socket(self) -> None:
        sock = self._socket = socket.socket(fileno=os.dup(self._shared))
        self.fd = sock.fileno()
        self.pollable = True
        self.write = lambda data: sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _reopen(self) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self.fd = os.open(f"/proc/self/fd/{self._shared}", flags)
        self.write = self._write

    def _write(self, data: memoryview) -> int:
        return os.write(self.fd, data)

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
        """Close the descriptors that were opened here."""
        if self._socket is not None:
            self._socket.close()
        elif self.fd != self._shared:
            with contextlib.suppress(OSError):  # a forked child may have closed all unknown descriptors
                os.close(self.fd)
