"""The options of `tailsrv-cat`."""

from __future__ import annotations

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line, checked as far as it can be without asking a server."""

    addresses: str
    index: str | None = None
    start: str = "start"
    until: str | None = None
    count: int | None = None
    framing: str = "newline"
    form: str = "raw"
    """"raw", "json", or "format"."""
    template: str = ""
    """For "format"."""
    checkpoint: str | None = None
    grep: str | None = None
    lag: bool = False
    progress: bool = False
    timeout: float | None = None
    """Seconds without a working connection."""
    max_message_bytes: int = 64 << 20

    @property
    def by_message(self) -> bool:
        """Whether the command works on messages rather than on bytes."""
        until = (self.until or "").partition(":")[0]
        return self.form != "raw" or self.count is not None or self.grep is not None or until in {"message", "count"}
