"""What `tailsrv-put` was asked to do."""

from __future__ import annotations

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line, checked as far as it can be without asking a server."""

    addresses: str
    name: str | None = None
    framing: str = "newline"
    spool: str | None = None
    file: str = "-"
    follow: str | None = None
    once: bool = False
    ignore_rotated: bool = False
    progress: bool = False
    max_message_bytes: int = 1 << 20
