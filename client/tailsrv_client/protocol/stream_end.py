"""Where a stream ends: asked with `where`, or searched for if the server does not support it (tailsrv 0.9). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tailsrv_client.protocol.dialogue import CONNECT_SECONDS, Receive, Send, connect, retry, verify_broadcaster
from tailsrv_client.protocol.reader import LARGEST_OFFSET
from tailsrv_formats.header import HEADER_BYTES, WHERE_LINE, parse_available_range

if TYPE_CHECKING:
    from collections.abc import Generator

    from tailsrv_client.protocol.dialogue import Dialogue, OnEvent
    from tailsrv_client.protocol.servers import Rotation
    from tailsrv_formats.header import AvailableRange

PROBE_BYTES: Final = 1 << 16
"""The most that is read of one answer before the search continues at a larger offset."""


def search_end(known: int = 0) -> Generator[tuple[int, int], int, int]:
    """Where the stream ends, as of some moment of the search: by asking for what there is from some bytes on.

    Yields an offset N for the header ``N now``, and how many bytes to read at most of the answer; wants to be sent
    how many came before the server ended the connection, or that many. Returns the end. `known`: an offset that the
    stream is known to reach. Two answers for a short stream or a near `known`, about 40 for a terabyte.
    An answer can be cut short by a server that stops: the end counts once a second connection agrees.
    """
    low, high, probe, most = known, LARGEST_OFFSET, known, PROBE_BYTES
    while True:
        came = yield probe, most
        if came >= most:
            low = max(low, probe + came)
            high = max(high, low)
        elif came or probe == low:
            found = probe + came
            again = max(0, found - 1)
            came = yield again, LARGEST_OFFSET
            if again + came >= found:
                return again + came
            low, high = 0, LARGEST_OFFSET
        else:
            high = probe
        if high - low <= PROBE_BYTES:
            # Read all from `low` on, with what was appended since `high` was found: a fast stream outgrows bisection.
            probe, most = low, LARGEST_OFFSET
        else:
            probe, most = min((low + high) // 2, max(low, PROBE_BYTES) * 16), PROBE_BYTES


def end_of(rotation: Rotation, known: int = 0, seconds: float = CONNECT_SECONDS) -> Dialogue[int]:
    """The end of the stream at the address that is to be tried, in bytes, as of now. `seconds`: for each wait."""
    yield from verify_broadcaster(rotation, seconds)
    if rotation.address not in rotation.servers.without_where:
        reach = yield from _where(rotation, seconds)
        if reach is not None:
            return reach.end
        rotation.servers.without_where.add(rotation.address)
    search = search_end(known)
    probe, most = next(search)
    while True:
        yield from connect(rotation, seconds)
        yield Send(b"%d now\n" % probe)
        came = 0
        while came < most:
            data = yield Receive(seconds, min(PROBE_BYTES, most - came))
            if not data:
                break
            came += len(data)
        try:
            probe, most = search.send(came)
        except StopIteration as found:
            end: int = found.value
            return end


def _where(rotation: Rotation, seconds: float) -> Dialogue[AvailableRange | None]:
    """Which bytes there are; None where the server closes the connection without a word."""
    yield from connect(rotation, seconds)
    yield Send(WHERE_LINE)
    line = b""
    while not line.endswith(b"\n") and len(line) <= HEADER_BYTES:
        data = yield Receive(seconds, HEADER_BYTES)
        if not data:
            break
        line += data
    return parse_available_range(line)


def find_end(rotation: Rotation, on_event: OnEvent) -> Dialogue[int]:
    """The end of the stream, from the first address that shows it."""
    end = yield from retry(rotation, lambda: end_of(rotation), lambda what: on_event(f"cannot find the end: {what}"))
    rotation.worked()
    return end
