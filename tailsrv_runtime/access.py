"""The networks whose peers may connect: `--allow`.

The default admits addresses that can only come from private networks; a machine with a public address serves no peer
from outside until its operator names one. A VPN or a TLS proxy provides encryption and identity. For a Unix socket, the
permissions of its path decide instead.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from tailsrv_formats.addresses import unmapped
from tailsrv_formats.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
PRIVATE: Final = (
    *LOOPBACK,
    "10.0.0.0/8",  # RFC 1918
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",  # link-local, RFC 3927 and 4291
    "fe80::/10",
    "fc00::/7",  # unique local addresses, RFC 4193
    "100.64.0.0/10",  # shared address space, RFC 6598: what overlay networks hand out
)
NAMED: Final = {"loopback": LOOPBACK, "private": PRIVATE, "any": ("0.0.0.0/0", "::/0")}

REMEMBERED: Final = 4096
"""Size of the cache of answers: a look-up costs 20 µs, and a reconnecting fleet has a few thousand hosts."""


class AllowList:
    """The networks whose hosts may connect."""

    def __init__(self, allowed: tuple[str, ...] = ("private",)) -> None:
        """`allowed`: networks in CIDR notation, or names of `NAMED`. Raises `UsageError` for anything else."""
        networks: list[Network] = []
        for entry in allowed:
            for network in NAMED.get(entry, (entry,)):
                try:
                    networks.append(_unmapped(ipaddress.ip_network(network)))
                except ValueError as error:
                    raise UsageError(f"--allow {entry}: {error}; write CIDR notation, or {', '.join(NAMED)}") from None
        self._networks = tuple(networks)
        self._answers: dict[str, bool] = {}

    def permits(self, host: str) -> bool:
        """Whether the peer with this address (as `accept` shows it) may connect."""
        answer = self._answers.get(host)
        if answer is None:
            if len(self._answers) >= REMEMBERED:
                self._answers.clear()
            address = ipaddress.ip_address(admitting(host))
            answer = any(address in network for network in self._networks)
            self._answers[host] = answer
        return answer


def admitting(host: str) -> str:
    """The value of `--allow` that admits the peer with this address, and no other.

    A dual-stack socket shows IPv4 peers as ``::ffff:a.b.c.d``, and link-local ones with their interface.
    """
    return unmapped(host).partition("%")[0]


def _unmapped(network: Network) -> Network:
    """The IPv4 network for a network of IPv4-mapped addresses; any other as it is."""
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network
