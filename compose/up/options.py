"""The settings of one `tailsrv-up`."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec reads annotations

import msgspec

from tailsrv_formats.addresses import Address

COLLATE, INDEX, TAILSRV = DAEMONS = ("collate", "index", "tailsrv")
"""The daemons in the order in which they start, and stop: the writer first."""

METRICS_ORDER = (TAILSRV, COLLATE, INDEX)
"""The daemons in the order of their HTTP ports, which is that of the ports from --base-port on."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """One stream's daemons and where they listen."""

    file: str
    host: str = ""
    """The interface to listen on; empty: all, IPv4 and IPv6."""
    base_port: int = 4321
    """The broadcast port; raw, acknowledged and index follow. 0: the kernel chooses each."""
    framing: str = "newline"
    sync: str = "always"
    allow: tuple[str, ...] = ("private",)
    metrics: Address | None = None
    """The first daemon's HTTP endpoint, from which the others' follow; None: there is none."""
    log_level: str = "info"
    log_format: str = "auto"
    log_file: str | None = None
    ready_fd: int | None = None
    passed: Mapping[str, tuple[str, ...]] = {}
    """For each of `DAEMONS` the further arguments that its own command line understands."""

    def address(self, position: int) -> Address:
        """Where the port with this position among the four is: broadcast, raw, acknowledged, index."""
        return Address(host=self.host, port=self.base_port + position if self.base_port else 0)

    def metrics_address(self, daemon: str) -> Address | None:
        """Where one of `DAEMONS` serves HTTP: ports follow each other, and a path ends in the daemon's name."""
        if self.metrics is None:
            return None
        if self.metrics.path is not None:
            return Address(path=f"{self.metrics.path}.{daemon}")
        port = self.metrics.port and self.metrics.port + METRICS_ORDER.index(daemon)
        return Address(host=self.metrics.host, port=port)
