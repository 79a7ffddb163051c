"""The addresses of a client's servers: which one to try, when, and which are verified to be of the right kind. Pure.

An address is *verified* once its server has answered as only the right kind does. Before that, any other answer means
that the address is wrong, and a retry cannot help: `WrongPortError`. After that, every failure of its connections
counts as temporary and is retried.
"""

from __future__ import annotations

import random
import socket
import time
from typing import TYPE_CHECKING

from tailsrv_client.errors import UnknownHostError, WrongPortError
from tailsrv_client.protocol.ports import BROADCAST, ENDED_SECONDS, ended, silent, wrong_port
from tailsrv_formats.addresses import Address, parse_address
from tailsrv_formats.errors import UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tailsrv_client.protocol.ports import Port


def parse_addresses(addresses: str | Iterable[str | Address], port: Port | None = None) -> tuple[Address, ...]:
    """The addresses of ``ADDR[,ADDR…]`` or of a list of them; a host alone has `port`. Raises `UsageError`."""
    listed = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    default = None if port is None else port.number
    parsed = tuple(parse_address(one.strip(), default) if isinstance(one, str) else one for one in listed)
    if not parsed:
        raise UsageError("no address to connect to; write ADDR[,ADDR…]")
    return parsed


class EndedError(ConnectionError):
    """The server has closed the connection."""


class SilentError(TimeoutError):
    """The server has not shown within `GREETING_SECONDS` that it is the right one."""


class Servers:
    """The addresses of the servers of one client, and what is known about them. May be shared by its threads."""

    def __init__(
        self,
        addresses: Iterable[Address],
        port: Port = BROADCAST,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.addresses: tuple[Address, ...] = tuple(addresses)
        if not self.addresses:
            raise UsageError("no address to connect to")
        self.port = port
        self.clock = clock
        self.verified: set[Address] = set[Address]()
        self.without_where: set[Address] = set[Address]()
        """Those whose broadcasters do not know the header `where`: tailsrv 0.9."""
        self.resolved = False
        """Whether any host was ever resolved."""
        self.unresolved: set[Address] = set[Address]()
        self.ended_since: dict[Address, float] = {}
        """For unverified addresses: since when their servers close connections without a byte."""

    def exclude(self, address: Address) -> None:
        """Try `address` no more."""
        self.addresses = tuple(one for one in self.addresses if one != address) or self.addresses


class Rotation:
    """Which address to try next, and how long to wait before. Pure, with a random generator of its own.

    The next address at once while there are untried ones; after each full round twice as long as after the one
    before, from `first` up to `longest` seconds, of which a random half is left out so that clients don't come in step.
    """

    def __init__(
        self,
        addresses: Servers | Iterable[Address],
        *,
        first: float = 0.05,
        longest: float = 5.0,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.servers: Servers = addresses if isinstance(addresses, Servers) else Servers(addresses)
        self._first, self._longest, self._rng = first, longest, rng
        self._next = 0
        self._failures = 0
        self._connected = False
        self.last_error: str = ""
        """The last failure; empty after a success."""

    def copy(self) -> Rotation:
        """Another one over the same servers, which begins at the same address."""
        other = Rotation(self.servers, first=self._first, longest=self._longest, rng=self._rng)
        other._next = self._next
        return other

    @property
    def address(self) -> Address:
        """The one to try."""
        addresses = self.servers.addresses
        return addresses[self._next % len(addresses)]

    @property
    def next_attempt(self) -> str:
        """The attempt that follows a failure, for messages."""
        return "retrying" if len(self.servers.addresses) == 1 else f"next: {self.address}"

    @property
    def verified(self) -> bool:
        """Whether the server at this address has shown that it is the right one."""
        return self.address in self.servers.verified

    def connected(self) -> None:
        """Note that this address accepts connections: later failures come from its server."""
        self._connected = True
        self.servers.resolved = True

    def set_verified(self) -> None:
        """Note that the server at this address has answered as only the right kind does."""
        self.servers.verified.add(self.address)
        self.servers.ended_since.pop(self.address, None)

    def worked(self) -> None:
        """Note that this address has served the client: pauses start from `first` again."""
        self._failures = 0
        self.last_error = ""

    def failed(self, error: Exception | None = None) -> float:
        """This address does not work, or no longer: go to the next one. Returns the seconds to wait before trying it.

        `error` is the `OSError` of the connection, or a `WrongPortError`. Raises `WrongPortError` where it means that
        the address is wrong, unless another one is verified: then this one is excluded. Raises
        `UnknownHostError` when no address has a host that is known.
        """
        address, servers = self.address, self.servers
        connected, self._connected = self._connected, False
        if error is not None:
            self.last_error = f"{address}: {reason(error) if isinstance(error, OSError) else error}"
        wrong, limit = None, self._longest
        if isinstance(error, WrongPortError):
            wrong = error
        elif isinstance(error, socket.gaierror):
            self._unresolved(error)
        elif error is not None and address not in servers.verified:
            wrong, limit = self._judge(error, connected=connected)
        if wrong is not None:
            if not servers.verified - {address}:
                raise wrong
            servers.exclude(address)
            self.last_error = f"{wrong} (it is left out from now on: another address is right)"
            return 0.0
        self._next += 1
        self._failures += 1
        rounds, untried = divmod(self._failures, len(servers.addresses))
        if untried:
            return 0.0
        pause = min(self._longest, self._first * 2.0 ** min(rounds - 1, 30)) * (0.5 + self._rng() / 2)
        return max(0.0, min(pause, limit))

    def _judge(self, error: Exception, *, connected: bool) -> tuple[WrongPortError | None, float]:
        """The meaning of a failure at an unverified address, and the longest pause before the next try."""
        address, servers = self.address, self.servers
        servers.resolved = True
        if isinstance(error, SilentError):
            return wrong_port(address, servers.port, silent(servers.port)), 0.0
        if not connected or isinstance(error, TimeoutError):
            servers.ended_since.pop(address, None)  # no server listens: the one that closed connections has ended
            return None, self._longest
        since = servers.ended_since.setdefault(address, servers.clock())
        left = since + ENDED_SECONDS - servers.clock()
        if left <= 0:
            reset = not isinstance(error, EndedError)
            return wrong_port(address, servers.port, ended(servers.port, reset=reset)), 0.0
        return None, left

    def _unresolved(self, error: socket.gaierror) -> None:
        servers = self.servers
        servers.unresolved.add(self.address)
        if not servers.resolved and servers.unresolved.issuperset(servers.addresses):
            hosts = ", ".join(sorted({repr(one.host) for one in servers.addresses}))
            raise UnknownHostError(f"{hosts} cannot be resolved ({reason(error)}); check the name or use an IP address")
