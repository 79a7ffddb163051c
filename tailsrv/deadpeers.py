"""Finding peers that died with bytes on their way.

Keepalive probes a connection that is silent. While bytes are in flight the kernel retransmits them instead, or probes
a window that is closed, and gives up after a quarter of an hour. TCP_USER_TIMEOUT would make that sooner, but it also
ends a live peer that keeps its window closed because it does not read; such a one answers every probe.

So we ask the kernel (TCP_INFO) about connections with bytes in flight, now and then, and only while there are any that
may have some: a peer that has not acknowledged anything for `DEAD_SECONDS`, although the kernel has asked it since more
than once, is dead. A window that has been closed for long is probed every two minutes only; that is how long it can
take longer.
"""

from __future__ import annotations

import functools
import socket
import struct
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tailsrv_runtime.reactor import Reactor

DEAD_SECONDS: Final = 80.0
"""As long as keepalive takes."""

SLACK_SECONDS: Final = 1.0
"""How much later than a peer can be dead at the earliest it is looked at."""

LOOK_SECONDS: Final = 10.0
"""At least so long between two looks."""
LOOKS_PER_ROUND: Final = 128
"""Connections that are asked about before others have a turn."""

# struct tcp_info of linux/tcp.h, from its beginning to tcpi_notsent_bytes.
_TCP_INFO: Final = struct.Struct("=8B24I4Q3I")
_RETRANSMITS, _PROBES, _UNACKED, _LAST_ACK_RECV, _NOTSENT_BYTES = 2, 3, 8 + 4, 8 + 12, 8 + 24 + 4 + 2


class Flight(msgspec.Struct, frozen=True):
    """What the kernel says of a connection's bytes in flight."""

    any: bool
    """Whether there are some, sent or to be sent."""
    unanswered: int
    """Retransmissions and window probes since the last acknowledgement."""
    silent_seconds: float
    """Since the last acknowledgement."""

    def is_dead(self) -> bool:
        """Whether the peer can be given up."""
        return self.unanswered > 1 and self.silent_seconds > DEAD_SECONDS


def in_flight(sock: socket.socket) -> Flight | None:
    """What the kernel says of a TCP socket; None for others, and for one that is closed."""
    if sock.family == socket.AF_UNIX or sock.fileno() < 0:
        return None
    try:
        fields = _TCP_INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    except (OSError, struct.error):  # an older kernel says less
        return None
    return Flight(
        any=fields[_UNACKED] > 0 or fields[_NOTSENT_BYTES] > 0,
        unanswered=fields[_RETRANSMITS] + fields[_PROBES],
        silent_seconds=fields[_LAST_ACK_RECV] / 1000,
    )


class DeadPeers:
    """Looks at the connections that `sockets()` returns, and calls ``died(socket)`` for each dead one.

    It does so only while something is on its way to one of them, whose beginning `watch` tells it.
    """

    def __init__(
        self,
        reactor: Reactor,
        sockets: Callable[[], Iterable[socket.socket]],
        died: Callable[[socket.socket], None],
        abort: Callable[[socket.socket], None],
    ) -> None:
        """``abort(socket)`` closes a connection about which something unexpected went wrong."""
        self._reactor = reactor
        self._sockets = sockets
        self._died = died
        self._abort = abort
        self.watching = False
        """Whether it looks."""

    def watch(self) -> None:
        """Bytes have been sent to somebody: begin to look, if we don't."""
        if not self.watching:
            self.watching = True
            self._reactor.call_later(DEAD_SECONDS + SLACK_SECONDS, self._look)

    def _look(self) -> None:
        self._look_at(list(self._sockets()), None)

    def _look_at(self, left: list[socket.socket], longest: float | None) -> None:
        """Look at some, and go on with the others in the next round; `longest` is the longest silence in flight."""
        for sock in left[-LOOKS_PER_ROUND:]:
            try:
                flight = in_flight(sock)
                if flight is None or not flight.any:
                    continue
                if flight.is_dead():
                    self._died(sock)
                else:
                    longest = max(longest or 0.0, flight.silent_seconds)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._reactor.contain(error, functools.partial(self._abort, sock))
        del left[-LOOKS_PER_ROUND:]
        if left:
            self._reactor.call_later(0, lambda: self._look_at(left, longest))
        elif longest is not None:
            self._reactor.call_later(max(LOOK_SECONDS, DEAD_SECONDS + SLACK_SECONDS - longest), self._look)
        else:
            self.watching = False
