"""A log that a test reads."""

from __future__ import annotations

from typing import Any


class RecordedLog:
    """A log, as `tailsrv_runtime.logs.Log` describes it, that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **facts: object) -> None:
        self.events.append((event, facts))

    info = warning = error = debug

    def of(self, event: str) -> list[dict[str, Any]]:
        """The facts of each event with this name."""
        return [facts for each, facts in self.events if each == event]
