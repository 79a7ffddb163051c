"""Where a stream ends, which no server says: found by asking, as a search that needs no socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tailsrv.client import CONNECT_SECONDS, LARGEST_OFFSET, connect

if TYPE_CHECKING:
    from collections.abc import Generator

    from tailsrv.kit.addresses import Address

PROBE_BYTES: Final = 1 << 16
"""What is read of one answer before the search goes on further behind."""


def search_end(known: int = 0) -> Generator[int, int, int]:
    """Where the stream ends, which no server says: by asking for what there is from some bytes on.

    Yields an offset N for the header ``N now``; wants to be sent how many bytes came, up to `PROBE_BYTES`, before
    the server ended the connection. Returns the end. `known`: an offset that the stream is known to reach. Two
    answers for a short stream or a near `known`, about 40 for a terabyte.
    An answer can be cut short by a server that stops: the end counts once a second connection agrees.
    """
    low, high, probe = known, LARGEST_OFFSET, known
    while True:
        came = yield probe
        if came >= PROBE_BYTES:
            low = max(low, probe + came)
            high = max(high, low)
        elif came or probe == low:
            found = probe + came
            again = max(0, found - 1)
            came = yield again
            if came < PROBE_BYTES and again + came >= found:
                return again + came
            low, high = (again + came, LARGEST_OFFSET) if came else (0, LARGEST_OFFSET)
        else:
            high = probe
        probe = low if high - low <= PROBE_BYTES else min((low + high) // 2, max(low * 16, PROBE_BYTES * 16))


def probe_end(address: Address, known: int = 0, timeout: float = CONNECT_SECONDS) -> int:
    """The end of the stream at `address`, in bytes, as of now. Raises `OSError` (`TimeoutError` included)."""
    search = search_end(known)
    probe = next(search)
    while True:
        with connect(address, timeout) as sock:
            sock.settimeout(timeout)
            sock.sendall(b"%d now\n" % probe)
            came = 0
            while came < PROBE_BYTES and (chunk := sock.recv(PROBE_BYTES - came)):
                came += len(chunk)
        try:
            probe = search.send(came)
        except StopIteration as found:
            end: int = found.value
            return end
