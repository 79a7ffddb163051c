"""Message numbers, times and bytes into places in a stream, from `tailsrv-index`; on a blocking socket.

The connection is made when first needed, kept, and made anew when it was lost: a look-up can be repeated safely.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, Self

from tailsrv.client import Rotation, connect, parse_addresses
from tailsrv_client.queries import LINE_BYTES, Entry, decode, encode
from tailsrv_client.where import parse_time

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from tailsrv.kit.addresses import Address

PIPELINE: Final = 512
"""Requests on their way at once: their bytes and their replies' fit into any socket's buffers."""


class Index:
    """An indexer at one of `addresses` (``ADDR[,ADDR…]`` or a list), asked within `timeout` seconds a request.

    Methods raise `IndexFailed` with the indexer's own words, and `OSError` when none of the addresses answers.
    """

    def __init__(self, addresses: str | Iterable[str | Address], *, timeout: float = 10.0) -> None:
        self._addresses = parse_addresses(addresses)
        self._rotation = Rotation(self._addresses)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._received = b""

    def offset_of(self, number: int) -> int:
        """The byte at which message `number` starts; `number` = `count()`: where the next one will start."""
        return self.ask({"number": number}).offset

    def offsets_of(self, numbers: Iterable[int]) -> Iterator[int]:
        """`offset_of` for many, pipelined: hundreds of requests on their way at once."""
        return (entry.offset for entry in self.ask_all({"number": number} for number in numbers))

    def last(self, messages: int) -> int:
        """The byte at which the so manieth message from the end starts; 0 where there are fewer."""
        return self.ask({"last": messages}).offset

    def at_time(self, time: str | float) -> Entry:
        """The first message that arrived at or after `time`: RFC 3339, or seconds since 1970."""
        return self.ask({"time": parse_time(time) if isinstance(time, str) else time})

    def message_holding(self, offset: int) -> Entry:
        """The message that byte `offset` belongs to."""
        return self.ask({"offset": offset})

    def entry(self, number: int) -> Entry:
        """All that is known about message `number`."""
        return self.ask({"number": number})

    def count(self) -> int:
        """How many messages the stream has."""
        return self.ask({"count": True}).count

    def ask(self, request: dict[str, Any]) -> Entry:
        """The reply to one request of PROTOCOLS section 4, in its JSON form."""
        return next(self.ask_all((request,)))

    def ask_all(self, requests: Iterable[dict[str, Any]]) -> Iterator[Entry]:
        """The replies to many requests, in their order, pipelined."""
        requests = iter(requests)
        while window := list(itertools.islice(requests, PIPELINE)):
            for line in self._exchange(b"".join(map(encode, window)), len(window)):
                yield decode(line)

    def close(self) -> None:
        """Give the connection back; a later look-up makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: bytes, replies: int) -> list[bytes]:
        """Send, and receive so many lines; once more at each address before it counts as a failure."""
        attempts = len(self._addresses) + (self._socket is not None)
        while True:
            try:
                if self._socket is None:
                    self._socket = connect(self._rotation.address, self._timeout)
                    self._socket.settimeout(self._timeout)
                self._socket.sendall(request)
                lines = self._lines(self._socket, replies)
            except OSError:
                self.close()
                self._rotation.failed()
                attempts -= 1
                if not attempts:
                    raise
            else:
                self._rotation.worked()
                return lines

    def _lines(self, sock: socket.socket, count: int) -> list[bytes]:
        while self._received.count(b"\n") < count:
            chunk = sock.recv(LINE_BYTES)
            if not chunk or (len(self._received) > LINE_BYTES and b"\n" not in self._received):
                raise ConnectionError(f"{self._rotation.address} ended the connection before it had answered")
            self._received += chunk
        *lines, self._received = self._received.split(b"\n", count)
        return lines
