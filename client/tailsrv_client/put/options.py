"""The options of `tailsrv-put`."""

from __future__ import annotations

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line, checked as far as it can be without asking a server."""

    addresses: str
    raw: bool = False
    """On the raw port, where nothing is acknowledged."""
    name: str | None = None
    """None: anonymous, or with `follow` one for each file."""
    framing: str = "newline"
    spool: str | None = None
    file: str = "-"
    follow: str | None = None
    once: bool = False
    ignore_rotated: bool = False
    timeout: float | None = None
    """Seconds without an acknowledgement while something is unacknowledged; raw: without being connected."""
    progress: bool = False
    max_message_bytes: int = 1 << 20
