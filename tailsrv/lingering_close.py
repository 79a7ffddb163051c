"""Ending connections so that the peer gets every byte, and an end rather than a reset.

A socket that is closed while something that its peer sent lies unread sends a reset, which throws away what is still
on its way. So the sending side is shut down first, what the peer goes on sending is read and thrown away, and the
socket is closed when the peer has ended too. A peer that never does is let go after `LINGER_SECONDS`, if it has
acknowledged everything; one that has not, because it does not read, keeps its socket: what is due to it stays due.

Until its end comes in this way, a connection is one whose close is a reset (`cut_on_close`): if this process is killed
or fails, its clients must be able to tell that they were cut off from having got everything. The kernel does that for
TCP alone; the peer of a Unix socket sees an end in both cases.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import socket
import struct
import termios
from typing import TYPE_CHECKING, Final

from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.reactor import READ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_runtime.reactor import Reactor

LINGER_SECONDS: Final = 10.0

DISCARD_BYTES: Final = 1 << 16
DISCARDS_PER_TURN: Final = 16

_CUT: Final = struct.pack("ii", 1, 0)
_DELIVER: Final = struct.pack("ii", 0, 0)
"""struct linger of socket(7): on or off, and how many seconds."""

_EDGE: Final = 1 << 31  # EPOLLET
_TCP_CLOSE: Final = b"\7"  # of net/tcp_states.h; the first byte of a struct tcp_info
_BUFFER: Final = bytearray(DISCARD_BYTES)


def cut_on_close(sock: socket.socket) -> None:
    """Make the close of a connection a reset, whoever closes it; until `end` or `abandon` of `LingeringClose`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT)


def discard(sock: socket.socket) -> bool | None:
    """Throw away what the peer has sent, up to a bound.

    True when it has ended, or is gone; None when there was something; False when it is silent.
    """
    silent: bool | None = False
    try:
        for _ in range(DISCARDS_PER_TURN):
            if not sock.recv_into(_BUFFER):
                return True
            silent = None
    except BlockingIOError:
        return silent
    except OSError:
        return True
    return None


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the peer's kernel may yet acknowledge, the end of the stream counting as one; tcp(7), SIOCOUTQ.

    What was sent to a Unix socket is with the peer already. After a reset the count stays; the state says that it is
    over.
    """
    if sock.family == socket.AF_UNIX:
        return 0
    count = array.array("i", [0])
    try:
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE:
            return 0
        fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return count[0]


class LingeringClose:
    """Ends connections, and holds those that are not over yet."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._ending: dict[socket.socket, bool] = {}
        """Each with whether its peer has ended as well."""
        self._deadlines: Deadlines[socket.socket] = Deadlines(reactor, LINGER_SECONDS, self._lingered, self._close)

    def __len__(self) -> int:
        return len(self._ending)

    def __iter__(self) -> Iterator[socket.socket]:
        return iter(self._ending)

    def end(self, sock: socket.socket) -> None:
        """No more bytes for this peer. The socket is registered with the reactor, and ours from now on."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DELIVER)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # reset by the peer
            self._close(sock)
            return
        self._ending[sock] = False
        self._deadlines.start(sock)
        self._reactor.modify(sock.fileno(), READ, functools.partial(self._on_event, sock))
        self._on_event(sock, READ)

    def abandon(self, sock: socket.socket) -> None:
        """Close now, for a peer whose time is over; nothing makes this a reset."""
        with contextlib.suppress(OSError):  # it is over anyhow
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DELIVER)
        discard(sock)
        self._close(sock)

    def cut(self, sock: socket.socket) -> None:
        """Close now, for a peer that is gone or can't get what is due to it: a reset."""
        self._close(sock)

    def _on_event(self, sock: socket.socket, _mask: int) -> None:
        ended = self._ending[sock]
        if not ended and discard(sock) is not True:
            return
        if not unacknowledged(sock):
            self._close(sock)
        elif not ended:
            # Both sides have ended: a hang-up from now on, which tells nothing until the last byte is acknowledged and
            # the state of the socket changes. Asked for once: asking again would be answered with the same hang-up.
            self._ending[sock] = True
            self._reactor.modify(sock.fileno(), _EDGE)

    def _lingered(self, sock: socket.socket) -> None:
        if unacknowledged(sock):
            self._deadlines.start(sock)
        else:
            self.abandon(sock)

    def reap(self) -> int:
        """Close what is complete: nobody lingers when the daemon ends. Returns how many bytes are on their way."""
        left = 0
        for sock in tuple(self._ending):
            count = unacknowledged(sock)
            left += count
            if not count and discard(sock) is not None:
                self._close(sock)
        return left

    def _close(self, sock: socket.socket) -> None:
        self._ending.pop(sock, None)
        self._deadlines.cancel(sock)
        self._reactor.unregister(sock.fileno())
        sock.close()

    def close(self) -> None:
        """Close all that is left."""
        for sock in tuple(self._ending):
            self.abandon(sock)
