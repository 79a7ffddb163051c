"""How long a client waits for what, and what it does about a lost connection. Pure."""

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
    """How long to wait for what, in seconds.

    `outage`: without a working connection, before `GaveUpError` (None: for ever). A connection works when the server
    has proven to be a broadcaster, and does not owe bytes that are known to exist.
    """

    def __init__(
        self, connect: float = CONNECT_SECONDS, check: float = CHECK_SECONDS, outage: float | None = None
    ) -> None:
        self.connect = connect
        self.check = check
        self.outage = outage

    def gave_up(self, rotation: Rotation) -> GaveUpError:
        """The error for when `outage` is over."""
        trouble = rotation.trouble or f"{rotation.address}: no answer"
        return GaveUpError(f"no working connection for {self.outage} s ({trouble})")


class Outage:
    """For how long nothing has worked. Pure: `now` is monotonic."""

    def __init__(self, limit: float | None, now: float) -> None:
        self._limit = limit
        self._since: float | None = now

    def works(self) -> None:
        """It is over."""
        self._since = None

    def begins(self, now: float) -> None:
        """Something does not work, if not for longer already."""
        if self._since is None:
            self._since = now

    @property
    def deadline(self) -> float | None:
        """When it will have lasted for too long."""
        return None if self._since is None or self._limit is None else self._since + self._limit


class Loss:
    """What to do about a lost connection; the same for both faces."""

    def __init__(self, rotation: Rotation, reader: Reader, tell: Callable[[str], None]) -> None:
        self._rotation, self._reader, self._tell = rotation, reader, tell
        self._shorter: int | None = None

    def ended(self) -> float:
        """The server has closed the connection. Returns the seconds to wait."""
        return self.failed(EndedError("ended by the server"))

    def failed(self, error: OSError) -> float:
        """It broke. Returns the seconds to wait."""
        pause = self._rotation.failed(error)
        self._tell(f"{self._rotation.trouble} at byte {self._reader.offset}; next: {self._rotation.address}")
        return pause

    def shorter(self) -> float:
        """The server has not shown bytes that we know: said once for a place. Returns the seconds to wait."""
        rotation, offset = self._rotation, self._reader.offset
        rotation.trouble = f"{rotation.address}: shorter than what was read: nothing at byte {offset} yet"
        trouble = rotation.trouble
        pause = rotation.failed()
        if offset != self._shorter:
            self._shorter = offset
            self._tell(f"{trouble}; next: {rotation.address}")
        return pause
