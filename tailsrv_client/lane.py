r"""The producer's side of the acknowledged lane: lines in, bytes out. Pure; knows no socket and no clock.

    producer: NAME "\n"       server: ACKED AT "\n"       producer: its stream from byte ACKED on …

A stream is what `Source` holds; offsets are bytes of that stream. The law of resuming: the server says where to go
on, and that has to be a place in what the source still has. Anything else would be a gap or a repetition, so it
raises `ProducerDiverged`.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tailsrv.kit.errors import UsageError
from tailsrv_client.errors import ProducerDiverged, ProducerRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_BYTES: Final = 128
NAME_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "._:-")
LINE_BYTES: Final = 4096
"""No line of a collator is longer."""


class Acked(NamedTuple):
    """The stream's bytes from `start` to `end` are committed; `end` stands at byte `at` of the file.

    `exact`: all of them stand right before `at`. Otherwise only the last message does, for sure: the line that would
    have told was lost with a connection, and there may have been several.
    """

    start: int
    end: int
    at: int
    exact: bool


class Source(Protocol):
    """What a lane sends: the bytes of one producer's stream that may still be asked for."""

    @property
    def start(self) -> int:
        """The first byte that it can still serve."""

    @property
    def end(self) -> int:
        """Behind the last byte that there is so far."""

    @property
    def anchored(self) -> bool:
        """Whether it knows which byte of the producer's stream its first one is."""

    def anchor(self, acked: int) -> None:
        """The first byte is number `acked` of the stream. Durable when the next `tidy` returns, where the bytes are."""

    def read(self, position: int, limit: int) -> bytes | memoryview:
        """Up to `limit` bytes from `position`; at least one where there is one."""

    def discard(self, position: int) -> None:
        """What lies before `position` is acknowledged."""

    def tidy(self) -> None:
        """Do what takes as long as a disk does. Called without any lock, after each batch of lines that was received.

        So an anchor is durable before a byte is sent under it. Raises `OSError` when that fails; there is none then.
        """


def check_name(name: str) -> str:
    """`name` if a producer may be called so. Raises `UsageError`."""
    if len(name) > NAME_BYTES or not NAME_CHARACTERS.issuperset(name):
        raise UsageError(f"no producer's name: {name!r}; up to {NAME_BYTES} of A-Z a-z 0-9 . _ : -")
    return name


class Lane:
    """One producer through any number of connections. An empty name is anonymous: it can't resume.

    An anonymous producer sends what is not acknowledged again on its next connection, so a commit whose line was
    lost makes it stand twice.
    """

    def __init__(self, name: str, source: Source) -> None:
        self.name = check_name(name)
        self.source = source
        self.sent = 0
        self.acked = 0
        self.greeted = False
        """Whether the server has said where to go on, on this connection."""
        self._heard = b""

    def opening(self) -> bytes:
        """What to send on a new connection."""
        self.greeted = False
        self._heard = b""
        return self.name.encode("ascii") + b"\n"

    @property
    def has_more(self) -> bool:
        """Whether there are bytes to be sent."""
        return self.greeted and self.source.end > self.sent

    @property
    def complete(self) -> bool:
        """Whether all that the source holds is acknowledged."""
        return self.greeted and self.acked == self.source.end

    def outgoing(self, limit: int) -> bytes | memoryview:
        """The next bytes to send, up to `limit`; say with `was_sent` how many were."""
        return self.source.read(self.sent, min(limit, self.source.end - self.sent))

    def was_sent(self, count: int) -> None:
        """So many of the outgoing bytes are on their way."""
        self.sent += count

    def received(self, data: bytes) -> Iterator[Acked]:
        """What the lines in `data` acknowledge. Raises `ProducerDiverged`, `ProducerRefused`.

        The caller settles each before it takes the next one, then lets the source `discard`.
        """
        *lines, self._heard = (self._heard + data).split(b"\n")
        if len(self._heard) > LINE_BYTES:
            raise ProducerRefused(f"this is no acknowledged lane: {_shown(self._heard)}")
        for line in lines:
            acked, at = parse_line(line)
            yield from self._next(acked, at) if self.greeted else self._first(acked, at)

    def _first(self, acked: int, at: int) -> Iterator[Acked]:
        source = self.source
        if not source.anchored or not self.name:
            source.anchor(acked)
        if not source.start <= acked <= source.end:
            raise ProducerDiverged(
                f"the collator has {acked} bytes of {self.name!r}; here are bytes {source.start} to {source.end}: "
                + ("another producer uses this name" if acked > source.end else "its file is not the one it was")
            )
        self.greeted = True
        start = source.start
        self.acked = self.sent = acked
        if acked > start:
            yield Acked(start, acked, at, exact=False)

    def _next(self, acked: int, at: int) -> Iterator[Acked]:
        if not self.acked <= acked <= self.sent:
            raise ProducerDiverged(
                f"the collator acknowledges byte {acked} of {self.name!r}; {self.acked} were, {self.sent} are sent"
            )
        start, self.acked = self.acked, acked
        if acked > start:
            yield Acked(start, acked, at, exact=True)


def parse_line(line: bytes) -> tuple[int, int]:
    """ACKED and AT, of a line without its newline. Raises `ProducerRefused` for anything else."""
    line = line.removesuffix(b"\r")
    acked, _, at = line.partition(b" ")
    if acked.isdigit() and at.isdigit() and len(line) <= 40:
        return int(acked), int(at)
    if line.startswith(b"error: "):
        raise ProducerRefused(ascii(line[7:].decode("utf-8", "replace"))[1:-1])
    raise ProducerRefused(f"this is no acknowledged lane: {_shown(line)}; check the address")


def _shown(data: bytes) -> str:
    return ascii(data[:80].decode("latin-1"))
