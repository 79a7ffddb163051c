"""Events of one port, counted for metrics and logged: what happened to its connections and their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailsrv_runtime.logs import Repeated

if TYPE_CHECKING:
    from tailsrv_runtime.logs import Log


class PortEvents:
    """The events of one port since the start of the daemon."""

    def __init__(self, log: Log) -> None:
        self.dropped: dict[str, int] = dict.fromkeys(
            ("reset", "unfinished", "misframed", "superseded", "no room", "wrong port", "stopped", "failed"), 0
        )
        """Incomplete messages dropped, by reason."""
        self.rejected: dict[str, int] = dict.fromkeys(
            ("misframed", "name", "superseded", "no room", "late", "wrong port"), 0
        )
        """Connections that the collator closed, by reason."""
        self.completed = 0
        """Last messages that the collator has completed with their terminator."""
        self._log_dropped = Repeated(log.info, "incomplete message dropped")
        self._log_completed = Repeated(log.info, "last message completed")
        self._log_rejected = Repeated(log.warning, "producer disconnected")
        self._log_superseded = Repeated(log.info, "producer superseded")
        self._log_wrong_client = Repeated(log.warning, "client of another port disconnected")

    def message_dropped(self, why: str, **facts: object) -> None:
        """Note an incomplete message that is dropped."""
        self.dropped[why] += 1
        self._log_dropped(**facts, reason=why)

    def message_completed(self, **facts: object) -> None:
        """Note a last message that is completed."""
        self.completed += 1
        self._log_completed(**facts)

    def producer_rejected(self, why: str, **facts: object) -> None:
        """Note a producer that the collator disconnects."""
        self.rejected[why] += 1
        self._log_rejected(**facts)

    def producer_superseded(self, **facts: object) -> None:
        """Note a producer that is disconnected because another connection uses its name."""
        self.rejected["superseded"] += 1
        self._log_superseded(**facts)

    def client_misdirected(self, **facts: object) -> None:
        """Note a client of another port that the collator disconnects."""
        self.rejected["wrong port"] += 1
        self._log_wrong_client(**facts)
