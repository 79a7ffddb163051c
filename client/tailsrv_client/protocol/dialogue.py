"""Dialogues: what a client does on a connection, as generators of steps. Blocking sockets and asyncio share them. Pure.

A *dialogue* yields `Connect`, `Send`, `Receive` and `Sleep`. Its runner performs each step and sends the result back:
the received bytes for `Receive`, b"" for the others. The runner throws a failed step's `OSError` into the dialogue. A
dialogue uses one connection at a time: `Connect` and `Sleep` close the previous one. The connection is still open when
the dialogue returns, and the caller may continue to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from tailsrv_client.errors import WrongPortError
from tailsrv_client.protocol.ports import GREETING_SECONDS, PROBE, SHOWN_BYTES, answered, wrong_port
from tailsrv_client.protocol.servers import EndedError, SilentError

if TYPE_CHECKING:
    from tailsrv_client.protocol.servers import Rotation
    from tailsrv_formats.addresses import Address

CONNECT_SECONDS: Final = 10.0
LINE_SECONDS: Final = 0.5
"""How long to wait for the rest of a wrong server's line, which only serves to name the server."""

RECEIVE_BYTES: Final = 1 << 16


class Connect(NamedTuple):
    """Connect within `seconds` in total: resolve the name, then try each of its addresses."""

    address: Address
    seconds: float = CONNECT_SECONDS


class Send(NamedTuple):
    """Send `data`: a line, or requests that the peer reads while it answers."""

    data: bytes
    seconds: float = CONNECT_SECONDS


class Receive(NamedTuple):
    """Receive 1 to `most` bytes within `seconds` (`math.inf`: no limit); b"" is the end. Raises `TimeoutError`."""

    seconds: float
    most: int = RECEIVE_BYTES


class Sleep(NamedTuple):
    """Close the connection and wait."""

    seconds: float


Step = Connect | Send | Receive | Sleep
Result = TypeVar("Result")
Dialogue = Generator[Step, bytes, Result]
OnEvent = Callable[[str], None]


def retry(
    rotation: Rotation, attempt: Callable[[], Dialogue[Result]], on_event: OnEvent, *, first: float = 0.0
) -> Dialogue[Result]:
    """The result of the first attempt that succeeds. Tries the addresses in turn, with growing pauses, without limit.

    `first`: seconds to wait before the first one. Raises as `Rotation.failed` does.
    """
    if first:
        yield Sleep(first)
    while True:
        try:
            return (yield from attempt())
        except (OSError, WrongPortError) as error:
            pause = rotation.failed(error)
            on_event(f"{rotation.last_error}; {rotation.next_attempt}")
        yield Sleep(pause)


def connect(rotation: Rotation, seconds: float = CONNECT_SECONDS) -> Dialogue[None]:
    """Connect to the rotation's current address."""
    yield Connect(rotation.address, seconds)
    rotation.connected()


def receive(rotation: Rotation, ends: float, most: int = RECEIVE_BYTES) -> Dialogue[bytes]:
    """Bytes from the server, by `ends` on the servers' clock. Raises `SilentError`, `EndedError`."""
    try:
        data = yield Receive(max(0.0, ends - rotation.servers.clock()), most)
    except TimeoutError:
        raise SilentError("no answer from the server") from None
    if not data:
        raise EndedError("ended by the server")
    return data


def rest_of_line(data: bytes) -> Dialogue[bytes]:
    """`data` and the bytes that follow it within `LINE_SECONDS`, up to a newline: to name the server."""
    while b"\n" not in data and len(data) < SHOWN_BYTES:
        try:
            more = yield Receive(LINE_SECONDS, SHOWN_BYTES)
        except OSError:
            break
        if not more:
            break
        data += more
    return data


def verify_broadcaster(rotation: Rotation, seconds: float = CONNECT_SECONDS) -> Dialogue[None]:
    """Verify, once for each address, that a broadcaster answers there: one round trip.

    A broadcaster has no greeting, and its stream may hold any bytes. But it closes a connection that asks for no bytes
    at once and without a byte. Raises `WrongPortError`.
    """
    if rotation.verified:
        return
    yield from connect(rotation, seconds)
    yield Send(PROBE)
    try:
        data = yield from receive(rotation, rotation.servers.clock() + GREETING_SECONDS, SHOWN_BYTES)
    except EndedError:
        rotation.set_verified()
        return
    raise wrong_port(rotation.address, rotation.servers.port, answered((yield from rest_of_line(data))))


def connect_broadcaster(rotation: Rotation, seconds: float, on_event: OnEvent, *, first: float = 0.0) -> Dialogue[None]:
    """Connect to a broadcaster; the connection is then ready for a header. `first`: seconds to wait before."""

    def attempt() -> Dialogue[None]:
        yield from verify_broadcaster(rotation, seconds)
        yield from connect(rotation, seconds)

    return (yield from retry(rotation, attempt, on_event, first=first))


def with_deadline(
    deadline: float | None, dialogue: Dialogue[Result], clock: Callable[[], float], late: Callable[[], Exception]
) -> Dialogue[Result]:
    """The result of `dialogue`, if it has one before `deadline` on `clock`. Raises ``late()`` otherwise.

    Every step of `dialogue` is shortened to what is left of the time, so a limit for all of it needs no timer.
    """
    if deadline is None:
        return (yield from dialogue)
    try:
        step = next(dialogue)
        while True:
            left = deadline - clock()
            if left <= 0:
                dialogue.close()
                raise late()
            try:
                received = yield step._replace(seconds=min(step.seconds, left))
            except OSError as error:
                if clock() >= deadline:
                    dialogue.close()
                    raise late() from None
                step = dialogue.throw(error)
            else:
                step = dialogue.send(received)
    except StopIteration as stop:
        result: Result = stop.value
        return result
