"""A byte-level client of the broadcaster: it reads on, through any number of connections, at the byte where it was.

Law: what it hands out is one stream without a gap, a repetition or a jump. To go on at byte N it asks for the up to
64 bytes before N as well and compares them with those that it knows: another stream raises `StreamDiverged`, one
that is shorter (a mirror that is behind, a file put back from a copy) is left for the next address. It knows nothing
of messages; of commits only that the server sends no byte that it would ever take back.

`Reader` and `Rotation` are pure; `ByteClient` is both on a blocking socket.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import msgspec

from tailsrv.kit.addresses import Address, parse_address
from tailsrv.kit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CHECKED_BYTES: Final = 64
"""Bytes before a position that tell whether a stream is the one that was read."""

CHUNK_BYTES: Final = 1 << 17
"""The most that one `read` returns: it stays in a processor's cache, and malloc has no need of the kernel."""

LARGEST_OFFSET: Final = (1 << 63) - 1
"""Header numbers stay below 2^63."""

CONNECT_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 5.0
"""How long a server may take to show bytes that we know to exist, before it counts as shorter."""


class StreamDiverged(Exception):  # noqa: N818 - the field's word for it; it is an error in every use
    """The server's stream is not the one that was read: the bytes before the position differ."""

    def __init__(self, offset: int) -> None:
        super().__init__(
            f"another stream: the {min(offset, CHECKED_BYTES)} bytes before byte {offset} are not those that were"
            " read; check the address, or start anew without the old position"
        )
        self.offset = offset


class Position(msgspec.Struct, frozen=True):
    """Where to go on: the byte offset, and the digest of the up to 64 bytes before it ("": not known, not checked)."""

    offset: int
    digest: str = ""


def digest(tail: bytes) -> str:
    """BLAKE2b of the up to 64 bytes before a position: 32 hexadecimal digits."""
    return hashlib.blake2b(tail[-CHECKED_BYTES:], digest_size=16).hexdigest()


class Reader:
    """One reader's place in a stream. Pure: headers out, bytes in.

    `start` is where to begin; `stop` the offset of the first byte that isn't wanted (None: follow for ever).
    """

    def __init__(self, start: Position, stop: int | None = None) -> None:
        self.offset = start.offset
        self.stop = stop
        self.before = b""
        """The up to 64 bytes before the start, once the first bytes have arrived."""
        self._digest = start.digest
        self._tail = None if start.offset else b""
        self._unchecked = 0
        self._heard = b""

    @property
    def done(self) -> bool:
        """Whether everything wanted has been handed out."""
        return self.stop is not None and self.offset >= self.stop

    @property
    def checking(self) -> bool:
        """Whether the server still owes bytes that we know: it has none of its own to wait for."""
        return self._unchecked > 0 and (self._tail is not None or bool(self._digest))

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.offset, self._digest if self._tail is None else digest(self._tail))

    def header(self) -> bytes:
        """What to send on a new connection."""
        self._unchecked = min(self.offset, CHECKED_BYTES)
        self._heard = b""
        begin = self.offset - self._unchecked
        return b"%d\n" % begin if self.stop is None else b"%d %d\n" % (begin, self.stop - begin)

    def received(self, data: bytes) -> bytes:
        """The new bytes in `data`, which may be none. Raises `StreamDiverged`."""
        if self._unchecked:
            data = self._check(data)
        if self.stop is not None:
            data = data[: max(0, self.stop - self.offset)]
        if data:
            self.offset += len(data)
            self._tail = data[-CHECKED_BYTES:] if len(data) >= CHECKED_BYTES else self._joined(data)
        return data

    def _joined(self, data: bytes) -> bytes:
        return ((self._tail or b"") + data)[-CHECKED_BYTES:]

    def _check(self, data: bytes) -> bytes:
        heard, fresh = self._heard + data[: self._unchecked], data[self._unchecked :]
        self._heard = heard
        self._unchecked -= len(data) - len(fresh)
        if self._tail is not None:
            if not self._tail.startswith(heard):
                raise StreamDiverged(self.offset)
        elif not self._unchecked:
            if self._digest and digest(heard) != self._digest:
                raise StreamDiverged(self.offset)
            self._tail = self.before = heard
        return fresh


class Rotation:
    """Which address to try, and how long to wait before: pure, with its own dice.

    The next address at once while there are untried ones; after each full round twice as long as after the one
    before, from `first` up to `longest` seconds, of which a random half is left out so that clients don't come in step.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        *,
        first: float = 0.05,
        longest: float = 5.0,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._addresses = tuple(addresses)
        if not self._addresses:
            raise UsageError("no address to connect to")
        self._first, self._longest, self._dice = first, longest, dice
        self._turn = 0
        self._failures = 0

    @property
    def address(self) -> Address:
        """The one to try."""
        return self._addresses[self._turn % len(self._addresses)]

    def worked(self) -> None:
        """This address has sent something."""
        self._failures = 0

    def failed(self) -> float:
        """This address did not, or no longer: go to the next one. Returns the seconds to wait before trying it."""
        self._turn += 1
        self._failures += 1
        rounds, untried = divmod(self._failures, len(self._addresses))
        if untried:
            return 0.0
        return min(self._longest, self._first * 2.0 ** min(rounds - 1, 30)) * (0.5 + self._dice() / 2)


def parse_addresses(addresses: str | Iterable[str | Address]) -> tuple[Address, ...]:
    """The addresses of ``ADDR[,ADDR…]`` or of a list of them. Raises `UsageError`."""
    listed = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    parsed = tuple(parse_address(one.strip()) if isinstance(one, str) else one for one in listed)
    if not parsed:
        raise UsageError("no address to connect to; write ADDR[,ADDR…]")
    return parsed


def connect(address: Address, timeout: float = CONNECT_SECONDS) -> socket.socket:
    """A blocking connection to `address`, with keepalives that find a dead peer within 60 s. Raises `OSError`."""
    if address.path is not None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
    else:
        sock = socket.create_connection((address.host or "localhost", address.port), timeout)
        keep_alive(sock)
    sock.settimeout(None)
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Find a peer that has vanished within 60 s, whether we send or only listen."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(level, option, value)


class Waits:
    """Seconds: how long to wait for what. `clock` is monotonic."""

    def __init__(self, connect: float = CONNECT_SECONDS, check: float = CHECK_SECONDS) -> None:
        self.connect = connect
        self.check = check


class ByteClient:
    """`reader` on blocking sockets: connects, and connects again, for as long as it takes.

    `tell` hears one sentence whenever a connection is lost or can't be had; it may raise to give up.
    """

    def __init__(
        self,
        rotation: Rotation,
        reader: Reader,
        *,
        tell: Callable[[str], None] = lambda _: None,
        waits: Waits | None = None,
    ) -> None:
        self.reader = reader
        self._rotation = rotation
        self._tell = tell
        self._waits = waits or Waits()
        self._socket: socket.socket | None = None
        self._check_by = 0.0
        self._retry_at = 0.0
        self._closed = threading.Event()

    def read(self, timeout: float | None = None) -> bytes:
        """The next bytes, 1 to `CHUNK_BYTES`; none at the reader's stop or after `stop`.

        Raises `TimeoutError` after `timeout` seconds without any (call again to go on), `StreamDiverged`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.reader.done and not self._closed.is_set():
            sock = self._socket or self._connect(deadline)
            if sock is None:
                continue
            data = self._receive(sock, deadline)
            try:
                fresh = self.reader.received(data)
            except StreamDiverged:
                self._drop()
                self._retry_at = time.monotonic() + self._rotation.failed()
                raise
            if fresh:
                self._rotation.worked()
                return fresh
        self._drop()
        return b""

    def stop(self) -> None:
        """Make a `read` in another thread return, and all further ones."""
        self._closed.set()
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):  # not connected, or no longer: what was wanted
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End; in the thread that reads."""
        self._closed.set()
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, deadline: float | None) -> socket.socket | None:
        pause = self._retry_at - time.monotonic()
        if pause > 0:
            self._closed.wait(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            _raise_if_late(deadline)
            return None
        try:
            sock = connect(self._rotation.address, self._waits.connect)
            self._socket = sock
            sock.sendall(self.reader.header())
        except OSError as error:
            self._lost(f"cannot connect ({error.strerror or error})")
            return None
        self._check_by = time.monotonic() + self._waits.check
        return sock

    def _receive(self, sock: socket.socket, deadline: float | None) -> bytes:
        """What comes next; nothing where the connection ended or the check took too long."""
        check_by = self._check_by if self.reader.checking else None
        limits = [limit for limit in (deadline, check_by) if limit is not None]
        try:
            sock.settimeout(max(1e-3, min(limits) - time.monotonic()) if limits else None)
            data = sock.recv(CHUNK_BYTES)
        except TimeoutError:
            if check_by is not None and time.monotonic() >= check_by:
                self._lost(f"shorter than what was read: nothing at byte {self.reader.offset} yet")
            _raise_if_late(deadline)
            return b""
        except OSError as error:
            self._lost(f"lost at byte {self.reader.offset} ({error.strerror or error})")
            return b""
        if not data and not self._closed.is_set():
            self._lost(f"ended by the server at byte {self.reader.offset}")
        return data

    def _lost(self, what: str) -> None:
        self._drop()
        address = self._rotation.address
        self._retry_at = time.monotonic() + self._rotation.failed()
        self._tell(f"{address}: {what}; next: {self._rotation.address}")

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _raise_if_late(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise TimeoutError
