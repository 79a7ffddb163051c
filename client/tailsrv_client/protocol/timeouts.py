"""Time limits of a client, and its reaction to a lost connection. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tailsrv_client.errors import GaveUpError
from tailsrv_client.protocol.dialogue import CONNECT_SECONDS
from tailsrv_client.protocol.servers import EndedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.protocol.reader import Reader
    from tailsrv_client.protocol.servers import Rotation

CHECK_SECONDS: Final = 5.0
"""How long a server may take to show bytes that we know to exist, before it counts as shorter."""


class Timeouts:
    """Time limits in seconds. `connect`: for a connection; `check`: for known bytes on a new connection.

    `outage`: without a working connection, before `GaveUpError` (None: for ever). A connection works when the server
    is verified to be a broadcaster and sends the bytes that are known to exist.
    """

    def __init__(
        self, connect: float = CONNECT_SECONDS, check: float = CHECK_SECONDS, outage: float | None = None
    ) -> None:
        self.connect = connect
        self.check = check
        self.outage = outage

    def gave_up(self, rotation: Rotation) -> GaveUpError:
        """The error for when `outage` is over."""
        last_error = rotation.last_error or f"{rotation.address}: no answer"
        return GaveUpError(f"no working connection for {self.outage} s ({last_error})")


class Outage:
    """The time without a working connection. `now` is monotonic."""

    def __init__(self, limit: float | None, now: float) -> None:
        self._limit = limit
        self._since: float | None = now

    def end(self) -> None:
        """Note that a connection works."""
        self._since = None

    def begin(self, now: float) -> None:
        """Start to count from `now`, unless an outage is already counted."""
        if self._since is None:
            self._since = now

    @property
    def deadline(self) -> float | None:
        """The time at which the outage exceeds the limit; None without an outage or a limit."""
        return None if self._since is None or self._limit is None else self._since + self._limit


class Reconnection:
    """Reports a lost connection and chooses the next address."""

    def __init__(self, rotation: Rotation, reader: Reader, on_event: Callable[[str], None]) -> None:
        self._rotation, self._reader, self._on_event = rotation, reader, on_event
        self._shorter: int | None = None

    def ended(self) -> float:
        """The server has closed the connection. Returns the seconds to wait."""
        return self.failed(EndedError("ended by the server"))

    def failed(self, error: OSError) -> float:
        """It broke. Returns the seconds to wait."""
        pause = self._rotation.failed(error)
        self._on_event(f"{self._rotation.last_error} at byte {self._reader.offset}; {self._rotation.next_attempt}")
        return pause

    def shorter(self) -> float:
        """The server has not shown bytes that we know: said once for a place. Returns the seconds to wait."""
        rotation, offset = self._rotation, self._reader.offset
        rotation.last_error = f"{rotation.address}: shorter than what was read: no bytes at byte {offset}"
        last_error = rotation.last_error
        pause = rotation.failed()
        if offset != self._shorter:
            self._shorter = offset
            self._on_event(f"{last_error}; {rotation.next_attempt}")
        return pause
