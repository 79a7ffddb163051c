r"""A producer's session with the acknowledged port: lines in, bytes out. Pure; knows no socket and no clock.

    producer: NAME "\r\n"     server: ACKED AT "\n"       producer: its stream from byte ACKED on …

`Source` holds the stream; offsets are bytes of that stream. The server's first ACKED is the offset to continue at. It
has to be within the bytes that the source still has: anything else would be a gap or a repetition, and raises
`ProducerDiverged`. The carriage return in the name line lets a collator's raw port detect the wrong port.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tailsrv_client.errors import ProducerDiverged, ProducerRefused
from tailsrv_client.protocol.dialogue import Send, connect, receive, rest_of_line
from tailsrv_client.protocol.ports import GREETING_SECONDS, answered, greets, wrong_port
from tailsrv_formats.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_client.protocol.dialogue import Dialogue
    from tailsrv_client.protocol.servers import Rotation

NAME_BYTES: Final = 128
NAME_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "._:-")
LINE_BYTES: Final = 4096
"""No line of a collator is longer."""

LATER_GREETING_SECONDS: Final = 10.0
"""How long a collator that has greeted before may take to say where to go on."""

RECEIVE_BYTES: Final = 1 << 16


class Acked(NamedTuple):
    """The stream's bytes from `start` to `end` are committed; they end at byte `at` of the file.

    `exact`: all of them are directly before `at`. Otherwise only the last message is known to be: ACKED lines were lost
    with a connection, and the commits that they reported may be at several places.
    """

    start: int
    end: int
    at: int
    exact: bool


class CollatorBusy(ConnectionError):  # noqa: N818 - what happened, not a kind of mistake
    """The collator ended the connection with ``error: busy, …``: that passes, so it counts as a lost connection."""


class ForeignLine(ProducerRefused):
    """The server's first bytes cannot come from an acknowledged port."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"unexpected reply {_shown(data)}: this is not an acknowledged port; check the address")
        self.data = data


class Source(Protocol):
    """The bytes of one producer's stream that a session may still have to send."""

    @property
    def start(self) -> int:
        """The first byte that it can still serve."""

    @property
    def end(self) -> int:
        """The offset after the last byte so far."""

    @property
    def anchored(self) -> bool:
        """Whether it knows which byte of the producer's stream its first one is."""

    def has_message(self, position: int) -> bool:
        """Whether there is a whole message from `position` on, where one begins.

        No outage limit counts for an incomplete one.
        """

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
        raise UsageError(f"invalid producer name {name!r}; use up to {NAME_BYTES} of A-Z a-z 0-9 . _ : -")
    return name


class Session:
    """One producer through any number of connections. An empty name is anonymous: it can't resume.

    An anonymous producer sends unacknowledged messages again on its next connection. If only the ACKED line was lost,
    they are in the file twice.
    """

    def __init__(self, name: str, source: Source) -> None:
        self.name: str = check_name(name)
        self.source = source
        self.sent: int = 0
        self.acked: int = 0
        self.greeted: bool = False
        """Whether the server has said where to go on, on this connection."""
        self._partial_line = b""

    def opening(self) -> bytes:
        """What to send on a new connection."""
        self.greeted = False
        self._partial_line = b""
        return name_line(self.name)

    @property
    def has_more(self) -> bool:
        """Whether there are bytes to be sent."""
        return self.greeted and self.source.end > self.sent

    @property
    def complete(self) -> bool:
        """Whether all messages that the source holds are acknowledged."""
        return self.greeted and not self.source.has_message(self.acked)

    def outgoing(self, limit: int) -> bytes | memoryview:
        """The next bytes to send, up to `limit`; say with `was_sent` how many were."""
        return self.source.read(self.sent, min(limit, self.source.end - self.sent))

    def was_sent(self, count: int) -> None:
        """Note that `count` of the outgoing bytes were sent."""
        self.sent += count

    def received(self, data: bytes) -> Iterator[Acked]:
        """What the lines in `data` acknowledge. Raises `ProducerDiverged`, `ProducerRefused`, `CollatorBusy`.

        The caller settles each before it takes the next one, then lets the source `discard`.
        """
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        if not self.greeted:
            check_greeting(lines[0] + b"\n" if lines else self._partial_line)
        if len(self._partial_line) > LINE_BYTES:
            raise ProducerRefused(f"a line of more than {LINE_BYTES} bytes: {_shown(self._partial_line)}")
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


def name_line(name: str) -> bytes:
    """What a producer called `name` sends first."""
    return name.encode("ascii") + b"\r\n"


def check_greeting(data: bytes) -> None:
    """Raise `ForeignLine` as soon as the first bytes of a server can't become a line of an acknowledged port."""
    if not greets(data):
        raise ForeignLine(data)


def greet(rotation: Rotation, session: Session, on_data: Callable[[bytes], None]) -> Dialogue[None]:
    """Connect, and wait for the collator's first ACKED line. `on_data` passes received bytes to the session."""

    def received(data: bytes) -> bool:
        on_data(data)
        return session.greeted

    return (yield from _greet(rotation, session.opening, received))


def ask_acked_once(rotation: Rotation, name: str) -> Dialogue[int]:
    """How many bytes the collator has under `name`. Raises `OSError`, `WrongPortError`, `ProducerRefused`."""
    line = b""

    def opening() -> bytes:
        nonlocal line
        line = b""
        return name_line(name)

    def received(data: bytes) -> bool:
        nonlocal line
        line += data
        check_greeting(line.partition(b"\n")[0] + b"\n" if b"\n" in line else line)
        return b"\n" in line

    yield from _greet(rotation, opening, received)
    return parse_line(line.partition(b"\n")[0])[0]


def _greet(rotation: Rotation, opening: Callable[[], bytes], received: Callable[[bytes], bool]) -> Dialogue[None]:
    yield from connect(rotation)
    yield Send(opening())
    # A verified collator may be out of disk space for hours; the connection is not kept open for that long.
    ends = rotation.servers.clock() + (GREETING_SECONDS if not rotation.verified else LATER_GREETING_SECONDS)
    try:
        while not received((yield from receive(rotation, ends, RECEIVE_BYTES))):
            pass
    except ForeignLine as foreign:
        what = answered((yield from rest_of_line(foreign.data)))
        raise wrong_port(rotation.address, rotation.servers.port, what) from None
    except (CollatorBusy, ProducerRefused, ProducerDiverged):
        rotation.set_verified()
        raise
    rotation.set_verified()


def parse_line(line: bytes) -> tuple[int, int]:
    """ACKED and AT, of a line without its newline. Raises `CollatorBusy`, `ProducerRefused` for anything else."""
    line = line.removesuffix(b"\r")
    acked, _, at = line.partition(b" ")
    if acked.isdigit() and at.isdigit() and len(line) <= 40:
        return int(acked), int(at)
    if line.startswith(b"error: "):
        text = ascii(line[7:].decode("utf-8", "replace"))[1:-1]
        if text == "busy" or text.startswith(("busy,", "busy:", "busy ")):
            raise CollatorBusy(f"the collator is {text}")
        raise ProducerRefused(text)
    raise ForeignLine(line)


def _shown(data: bytes) -> str:
    return ascii(data[:80].decode("latin-1"))
