"""Closing connections so that the client receives every byte, and then an end of the stream instead of a reset.

When a socket is closed while it holds unread bytes from its peer, the kernel sends a reset, and the peer loses the
bytes that it has not received yet. So a connection is closed in steps (nginx calls this a lingering close): send the
FIN, read and discard what the client still sends, and close the socket when the client has sent its FIN as well. A
client that never does so is closed after `LINGER_SECONDS` if it has acknowledged everything. If it has not, because it
does not read, the socket stays open: the kernel still has bytes for it.

Until then the close of a connection is a reset on purpose (`reset_on_close`): when this process is killed or fails, its
clients can tell that they were cut off before they had everything. Unix sockets have no reset: their peers see an end
of the stream in both cases.
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
DISCARDS_PER_EVENT: Final = 16
"""Reads after which a client that sends without pause has to wait for the others."""

_RESET: Final = struct.pack("ii", 1, 0)
_DELIVER: Final = struct.pack("ii", 0, 0)
"""struct linger of socket(7): on or off, and a number of seconds."""

_EDGE: Final = 1 << 31  # EPOLLET
_TCP_CLOSE: Final = b"\7"  # of net/tcp_states.h; the first byte of a struct tcp_info
_BUFFER: Final = bytearray(DISCARD_BYTES)


def reset_on_close(sock: socket.socket) -> None:
    """Make the close of a connection a reset, also when the process dies; until `LingeringClose` takes it over."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def discard(sock: socket.socket) -> bool | None:
    """Read and discard what the peer has sent, up to a limit.

    Returns True if the peer has sent its FIN or a reset, None if there were bytes, and False if there was nothing.
    """
    nothing: bool | None = False
    try:
        for _ in range(DISCARDS_PER_EVENT):
            if not sock.recv_into(_BUFFER):
                return True
            nothing = None
    except BlockingIOError:
        return nothing
    except OSError:
        return True
    return None


def unacknowledged(sock: socket.socket) -> int:
    """Number of bytes that the peer's kernel has not acknowledged yet; a FIN counts as one. See tcp(7), SIOCOUTQ.

    0 for Unix sockets, whose peer has the bytes at once, and after a reset, which leaves the kernel's count as it was.
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
    """Closes connections, and owns those whose close takes longer. As a collection: the sockets of these."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._closing: dict[socket.socket, bool] = {}
        """Each socket, and whether its peer has sent its FIN."""
        self._deadlines: Deadlines[socket.socket] = Deadlines(reactor, LINGER_SECONDS, self._expired, self._close)

    def __len__(self) -> int:
        return len(self._closing)

    def __iter__(self) -> Iterator[socket.socket]:
        return iter(self._closing)

    def close_gracefully(self, sock: socket.socket) -> None:
        """Send the FIN after the last byte, and close `sock` when the peer has everything.

        The socket must be registered with the reactor.
        """
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DELIVER)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # reset by the peer
            self._close(sock)
            return
        self._closing[sock] = False
        self._deadlines.start(sock)
        self._reactor.modify(sock.fileno(), READ, functools.partial(self._on_event, sock))
        self._on_event(sock, READ)

    def close_now(self, sock: socket.socket) -> None:
        """Close `sock` without waiting for the peer, and, as far as possible, without a reset."""
        with contextlib.suppress(OSError):  # the peer has reset the connection
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DELIVER)
        discard(sock)
        self._close(sock)

    def reset(self, sock: socket.socket) -> None:
        """Close `sock` by a reset: the peer has disconnected, or will not get all bytes that it asked for."""
        with contextlib.suppress(OSError):  # the peer has reset the connection
            reset_on_close(sock)
        self._close(sock)

    def _on_event(self, sock: socket.socket, _mask: int) -> None:
        peer_ended = self._closing[sock]
        if not peer_ended and discard(sock) is not True:
            return
        if not unacknowledged(sock):
            self._close(sock)
        elif not peer_ended:
            # Now that both sides have sent their FINs, epoll reports a hang-up in every round. Edge-triggered, it
            # reports once more when the state of the socket changes, which is when the peer acknowledges the last byte.
            # Only one `modify`: a second one would report the present hang-up again.
            self._closing[sock] = True
            self._reactor.modify(sock.fileno(), _EDGE)

    def _expired(self, sock: socket.socket) -> None:
        if unacknowledged(sock):
            self._deadlines.start(sock)
        else:
            self.close_now(sock)

    def reap(self) -> int:
        """Close the sockets whose peers have everything. Returns how many bytes the other peers have to acknowledge.

        For the end of the daemon, which does not wait until a peer has sent its FIN.
        """
        remaining = 0
        for sock in tuple(self._closing):
            count = unacknowledged(sock)
            remaining += count
            # Not after bytes from the peer: more of them may be on their way, and the close would become a reset.
            if not count and discard(sock) is not None:
                self._close(sock)
        return remaining

    def _close(self, sock: socket.socket) -> None:
        self._closing.pop(sock, None)
        self._deadlines.cancel(sock)
        self._reactor.unregister(sock.fileno())
        sock.close()

    def close(self) -> None:
        """Close all sockets that are left."""
        for sock in tuple(self._closing):
            self.close_now(sock)
