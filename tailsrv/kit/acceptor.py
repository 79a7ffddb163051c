"""Taking connections in.

At a limit we stop accepting and let the kernel queue: when descriptors (or the kernel's memory) run out, the listener
is taken off the loop and tried again after a pause. It never spins, never ends the daemon, and needs nobody's help.
Whatever goes wrong with one connection closes that connection.
Every connection gets keepalive, so that a dead peer is found within 90 seconds.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Final

from tailsrv.kit.access import admitting
from tailsrv.kit.addresses import BACKLOG, format_address
from tailsrv.kit.logs import Repeated
from tailsrv.kit.reactor import READ
from tailsrv.kit.shortage import advice, is_shortage, spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.kit.access import AllowList
    from tailsrv.kit.addresses import Listener
    from tailsrv.kit.logs import Log
    from tailsrv.kit.reactor import Reactor, Timer

ACCEPTS_PER_TURN: Final = 64
PAUSE_SECONDS: Final = 0.5
"""How soon accepting is tried again when descriptors ran out."""

KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),  # seconds of silence, then
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),  # a probe every so often, and
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),  # as many without an answer: dead after 80 seconds
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),  # we batch; the kernel need not wait for more
)


class Acceptor:
    """Accepts on one listener, asks the allow list, and hands the socket (non-blocking) and its peer's name on."""

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
        """`shared` when other processes accept on this listener too: a connection then wakes one of them.

        `use_reserve`: accept also while descriptors are short, with those that are held back (`shortage`). For few
        connections at a time, as health checks are.
        """
        self._reactor = reactor
        self._events = READ | select.EPOLLEXCLUSIVE if shared else READ
        self._listener = listener
        self._allow = allow
        self._connected = connected
        self._use_reserve = use_reserve
        self._pause_timer: Timer | None = None
        self._log_refused = Repeated(log.warning, "peer refused")
        self._log_exhausted = Repeated(log.warning, "accepting paused")
        self.accepted = 0
        self.refused = 0
        reactor.register(listener.socket.fileno(), self._events, self._on_ready)

    def _on_ready(self, _mask: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = self._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if not is_shortage(error):
                    continue  # an error of the connection, which is gone (accept(2)); the next one may be well
                self._pause(error)
                return
            try:
                self._take(sock, peer)
            except OSError:
                sock.close()  # it is gone already, or the loop has no room for it
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._reactor.contain(error, sock.close)

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
        if isinstance(peer, tuple) and not self._allow.permits(peer[0]):
            self.refused += 1
            self._log_refused(
                peer=format_address(peer), listener=self._listener.address, admit=f"--allow {admitting(peer[0])}"
            )
            sock.close()
            return
        self.accepted += 1
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            for level, option, value in KEEPALIVE:
                sock.setsockopt(level, option, value)
        self._connected(sock, format_address(peer))

    def _pause(self, error: OSError) -> None:
        self._log_exhausted(error=error.strerror, listener=self._listener.address, advice=advice(error))
        self._reactor.unregister(self._listener.socket.fileno())
        self._pause_timer = self._reactor.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        self._reactor.register(self._listener.socket.fileno(), self._events, self._on_ready)

    def take_queued(self) -> None:
        """Take the connections that the kernel has queued: they are reset when their listener is closed."""
        for _ in range(BACKLOG // ACCEPTS_PER_TURN):
            self._on_ready(READ)

    def close(self) -> None:
        """Take no more connections, and stop listening."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        self._reactor.unregister(self._listener.socket.fileno())
        self._listener.close()
