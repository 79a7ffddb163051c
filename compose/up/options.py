"""What `tailsrv-up` was asked for."""

from __future__ import annotations

import msgspec

from tailsrv_formats.addresses import Address


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """One stream's daemons and where they listen."""

    file: str
    host: str = ""
    """The interface to listen on; empty: all, IPv4 and IPv6."""
    base_port: int = 4321
    """Broadcast; collate, acknowledged and index follow. 0: the kernel chooses each."""
    framing: str = "newline"
    sync: str = "always"
    allow: tuple[str, ...] = ("private",)
    log_level: str = "info"
    log_format: str = "auto"
    log_file: str | None = None
    ready_fd: int | None = None

    def address(self, position: int) -> str:
        """Where the daemon with this position among the ports listens, as an option takes it."""
        return str(Address(host=self.host, port=self.base_port + position if self.base_port else 0))
