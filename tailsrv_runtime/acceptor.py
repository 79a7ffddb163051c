"""Accepting connections.

At a limit the acceptor stops accepting, and the kernel queues: when descriptors (or the kernel's memory) run out, the
acceptor removes its listener from the loop and tries again after a pause. It does the same for any other failure that
is not the fault of one connection. So it never spins, never ends the daemon, and recovers by itself. A failure in the
work for one connection closes that connection. Every connection has keepalive: a dead peer is found within 80 seconds.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
from typing import TYPE_CHECKING, Final

from tailsrv_formats.addresses import format_address
from tailsrv_formats.errors import reason
from tailsrv_runtime.access import admitting
from tailsrv_runtime.listeners import BACKLOG
from tailsrv_runtime.logs import Repeated
from tailsrv_runtime.reactor import HANGUP, READ
from tailsrv_runtime.shortage import advice, hold_descriptors, is_drawn_on, is_shortage, spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.access import AllowList
    from tailsrv_runtime.listeners import Listener
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

ACCEPTS_PER_TURN: Final = 64
PAUSE_SECONDS: Final = 0.5
"""Time until the acceptor tries again."""

OF_ONE_CONNECTION: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.EOPNOTSUPP),
    }
)
"""Errors of accept(2) that concern the connection that it would have returned, which is lost then."""

KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),  # seconds of silence, then
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),  # seconds between two probes;
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),  # after this many without an answer the peer is dead: 80 seconds
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),  # the daemons batch; the kernel must not wait for more
)


class Acceptor:
    """Accepts on one listener, applies the allow list, and passes on the non-blocking socket and its peer's name."""

    def __init__(
        self,
        reactor: Reactor,
        listener: Listener,
        allow: AllowList,
        connected: Callable[[socket.socket, str], None],
        log: Log,
        *,
        shared: bool = False,
        use_reserve: bool = False,
    ) -> None:
        """``connected(sock, peer)`` owns the socket when it returns; when it raises, the socket is closed here.

        `shared`: other processes accept on this listener too, and a connection wakes only one of them. `use_reserve`:
        accept also while descriptors are short, on the reserve (`shortage`); for few connections at a time, such as
        health checks.
        """
        self._reactor = reactor
        self._events = READ | select.EPOLLEXCLUSIVE if shared else READ
        self._listener = listener
        self._allow = allow
        self._connected = connected
        self._use_reserve = use_reserve
        self._pause_timer: Timer | None = None
        self._log_refused = Repeated(log.warning, "peer refused")
        self._log_paused = Repeated(log.warning, "accepting paused")
        self._log_dropped = Repeated(log.warning, "connection dropped")
        self.accepted = 0
        self.refused = 0
        reactor.register(listener.socket.fileno(), self._events, self._on_ready)

    def _on_ready(self, mask: int) -> None:
        if is_drawn_on() and not self._use_reserve:
            hold_descriptors()  # the reserve has precedence over peers
            if is_drawn_on():
                self._pause(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
        failed: OSError | None = None
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = self._accept()
            except BlockingIOError:
                if mask & HANGUP:  # the loop would report it again and again
                    self._pause(OSError(errno.EINVAL, "the listening socket was shut down"))
                return
            except OSError as error:
                failed = error
                if error.errno in OF_ONE_CONNECTION:
                    continue
                break
            failed = None
            self._take(sock, peer)
        if failed is not None:  # also after a turn of failures alone: the loop would spin
            self._pause(failed)

    def _accept(self) -> tuple[socket.socket, object]:
        try:
            return self._listener.socket.accept()
        except BlockingIOError:
            raise
        except OSError as error:
            if not (self._use_reserve and is_shortage(error)):
                raise
        with spare_descriptors():
            return self._listener.socket.accept()

    def _take(self, sock: socket.socket, peer: object) -> None:
        close = functools.partial(self._close, sock, sock.fileno())
        try:
            if isinstance(peer, tuple) and not self._allow.permits(peer[0]):
                self.refused += 1
                self._log_refused(
                    peer=format_address(peer), listener=self._listener.address, admit=f"--allow {admitting(peer[0])}"
                )
                sock.close()
                return
            self.accepted += 1
            try:
                _set_up(sock)
            except OSError:
                sock.close()  # its peer has disconnected already
                return
            self._connected(sock, format_address(peer))
        except ConnectionError:
            close()
        except Exception as error:  # noqa: BLE001 - logged, contained, or raised again
            if isinstance(error, OSError) and is_shortage(error):
                self._log_dropped(
                    peer=format_address(peer),
                    listener=self._listener.address,
                    error=reason(error),
                    advice=advice(error),
                )
                close()
            else:
                self._reactor.contain(error, close)

    def _close(self, sock: socket.socket, fd: int) -> None:
        if sock.fileno() == fd:  # otherwise it is closed, and its number may be that of another socket
            self._reactor.unregister(fd)
            sock.close()

    def _pause(self, error: OSError) -> None:
        self._log_paused(
            error=reason(error),
            listener=self._listener.address,
            advice=advice(error) if is_shortage(error) else "the daemon retries; restart it if this goes on",
        )
        self._reactor.unregister(self._listener.socket.fileno())
        self._pause_timer = self._reactor.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        sock = self._listener.socket
        if sock.fileno() < 0:  # closed meanwhile
            return
        try:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                _listen_again(sock)
            self._reactor.register(sock.fileno(), self._events, self._on_ready)
        except OSError as error:
            self._pause(error)

    def take_queued(self) -> None:
        """Accept the connections that the kernel has queued: it resets them when their listener is closed."""
        for _ in range(BACKLOG // ACCEPTS_PER_TURN):
            if self._pause_timer is not None:
                return
            self._on_ready(READ)

    def close(self) -> None:
        """Accept no more connections, and stop listening."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        self._reactor.unregister(self._listener.socket.fileno())
        self._listener.close()


def _listen_again(sock: socket.socket) -> None:
    """Revive a listener that was shut down, by another process that inherited it or by `ss -K`.

    After `ss -K`, the connections that it accepts are shut down as well, until a shutdown during listen clears that.
    """
    _listen(sock)
    sock.shutdown(socket.SHUT_RDWR)
    _listen(sock)


def _listen(sock: socket.socket) -> None:
    try:
        # The kernel has released a port that it chose itself; listen alone would choose another one.
        sock.bind(sock.getsockname())
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it is still bound
            raise
    sock.listen(BACKLOG)


def _set_up(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        for level, option, value in KEEPALIVE:
            sock.setsockopt(level, option, value)
