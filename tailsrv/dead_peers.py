"""Detection of peers that died while bytes were on their way to them.

Keepalive finds a dead peer on a connection without traffic. While bytes are in flight, the kernel retransmits them
instead of probing, or probes a closed window, and gives up after a quarter of an hour. TCP_USER_TIMEOUT would shorten
that, but it also ends the connection of a live peer that keeps its window closed because it does not read. Such a peer
answers every probe.

So this module reads the kernel's counters (TCP_INFO). A peer is dead if it has acknowledged nothing for `DEAD_SECONDS`,
although the kernel has sent more than one retransmission or probe since its last acknowledgement. The connections are
checked now and then, and only while bytes may be in flight on one of them. The kernel probes a window that has been
closed for long only every two minutes; a death is found that much later then.
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
"""The same time after which keepalive gives up."""

SLACK_SECONDS: Final = 1.0
"""Time between the earliest possible death and the check that finds it."""

CHECK_SECONDS: Final = 10.0
"""The shortest time between two checks."""

CHECKED_PER_ROUND: Final = 128
"""Connections that are checked before the loop handles other events."""

# struct tcp_info of linux/tcp.h, from its beginning to tcpi_notsent_bytes.
_TCP_INFO: Final = struct.Struct("=8B24I4Q3I")
_RETRANSMITS, _PROBES, _UNACKED, _LAST_ACK_RECV, _NOTSENT_BYTES = 2, 3, 8 + 4, 8 + 12, 8 + 24 + 4 + 2


class Flight(msgspec.Struct, frozen=True):
    """The kernel's counters of a connection's bytes in flight."""

    any: bool
    """Whether there are bytes that the peer has not acknowledged, sent or queued."""
    unanswered: int
    """Number of retransmissions and window probes since the last acknowledgement."""
    silent_seconds: float
    """Time since the last acknowledgement."""

    def is_dead(self) -> bool:
        """Whether the peer counts as dead."""
        return self.unanswered > 1 and self.silent_seconds > DEAD_SECONDS


def in_flight(sock: socket.socket) -> Flight | None:
    """The counters of a TCP socket; None for other sockets, and for one that is closed."""
    if sock.family == socket.AF_UNIX or sock.fileno() < 0:
        return None
    try:
        fields = _TCP_INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    except (OSError, struct.error):  # an older kernel returns a shorter structure
        return None
    return Flight(
        any=fields[_UNACKED] > 0 or fields[_NOTSENT_BYTES] > 0,
        unanswered=fields[_RETRANSMITS] + fields[_PROBES],
        silent_seconds=fields[_LAST_ACK_RECV] / 1000,
    )


class DeadPeers:
    """Checks the connections that ``sockets()`` returns, and calls ``died(socket)`` for each dead peer.

    It checks from a call of `watch` until no bytes are in flight: an idle daemon does not wake up.
    """

    def __init__(
        self,
        reactor: Reactor,
        sockets: Callable[[], Iterable[socket.socket]],
        died: Callable[[socket.socket], None],
        abort: Callable[[socket.socket], None],
    ) -> None:
        """``abort(socket)`` closes a connection whose check has raised an unexpected error."""
        self._reactor = reactor
        self._sockets = sockets
        self._died = died
        self._abort = abort
        self.watching = False
        """Whether a check is scheduled."""

    def watch(self) -> None:
        """Bytes have been sent: schedule the first check, if none is scheduled."""
        if not self.watching:
            self.watching = True
            self._reactor.call_later(DEAD_SECONDS + SLACK_SECONDS, self._check_all)

    def _check_all(self) -> None:
        self._check(list(self._sockets()), None)

    def _check(self, unchecked: list[socket.socket], longest: float | None) -> None:
        """Check some connections now and the others in the next round.

        `longest`: the longest silence so far, in seconds, of connections with bytes in flight; None if there are none.
        """
        for sock in unchecked[-CHECKED_PER_ROUND:]:
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
        del unchecked[-CHECKED_PER_ROUND:]
        if unchecked:
            self._reactor.call_later(0, lambda: self._check(unchecked, longest))
        elif longest is not None:
            self._reactor.call_later(max(CHECK_SECONDS, DEAD_SECONDS + SLACK_SECONDS - longest), self._check_all)
        else:
            self.watching = False
