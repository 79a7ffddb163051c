"""What a client does with connections, as generators of steps: one text for blocking sockets and for asyncio. Pure.

A *talk* yields `Dial`, `Say`, `Hear` and `Pause`, and gets back what `Hear` heard (b"" for the others); a failure
comes as the `OSError` that it is. It has one connection at a time: `Dial` ends the one before. When it returns, the
connection is open, for whoever goes on with it.
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
"""How long the rest of a wrong server's line may take: it only serves to name what answers."""

HEAR_BYTES: Final = 1 << 16


class Dial(NamedTuple):
    """Connect, within so many seconds all in all: the name is resolved, and each of its addresses is tried."""

    address: Address
    seconds: float = CONNECT_SECONDS


class Say(NamedTuple):
    """Send this: a line or so, or requests that the peer reads while it answers."""

    data: bytes
    seconds: float = CONNECT_SECONDS


class Hear(NamedTuple):
    """Receive something, within `seconds` (`math.inf`: wait for ever); b"" is the end. Raises `TimeoutError`."""

    seconds: float
    most: int = HEAR_BYTES


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Step = Dial | Say | Hear | Pause
Result = TypeVar("Result")
Talk = Generator[Step, bytes, Result]
Tell = Callable[[str], None]


def persistently(
    rotation: Rotation, attempt: Callable[[], Talk[Result]], tell: Tell, *, first: float = 0.0
) -> Talk[Result]:
    """The result of the first attempt that works, one address after the other, with growing pauses, for ever.

    `first`: seconds to wait before the first one. Raises as `Rotation.failed` does.
    """
    if first:
        yield Pause(first)
    while True:
        try:
            return (yield from attempt())
        except (OSError, WrongPortError) as error:
            pause = rotation.failed(error)
            tell(f"{rotation.trouble}; next: {rotation.address}")
        yield Pause(pause)


def dial(rotation: Rotation, seconds: float = CONNECT_SECONDS) -> Talk[None]:
    """Connect to the address that is to be tried."""
    yield Dial(rotation.address, seconds)
    rotation.connected()


def hear(rotation: Rotation, ends: float, most: int = HEAR_BYTES) -> Talk[bytes]:
    """Something from the server, by `ends` on the servers' clock. Raises `SilentError`, `EndedError`."""
    try:
        data = yield Hear(max(0.0, ends - rotation.servers.clock()), most)
    except TimeoutError:
        raise SilentError("no answer from the server") from None
    if not data:
        raise EndedError("ended by the server")
    return data


def rest_of_line(data: bytes) -> Talk[bytes]:
    """`data` and what follows it soon, up to a newline: to say what answers."""
    while b"\n" not in data and len(data) < SHOWN_BYTES:
        try:
            more = yield Hear(LINE_SECONDS, SHOWN_BYTES)
        except OSError:
            break
        if not more:
            break
        data += more
    return data


def prove_broadcaster(rotation: Rotation, seconds: float = CONNECT_SECONDS) -> Talk[None]:
    """Make sure, once for each address, that a broadcaster answers there: one round trip.

    It has no greeting, and its stream may hold anything; but it ends a connection that asks for no bytes, at once and
    without a byte. Raises `WrongPortError`.
    """
    if rotation.proven:
        return
    yield from dial(rotation, seconds)
    yield Say(PROBE)
    try:
        data = yield from hear(rotation, rotation.servers.clock() + GREETING_SECONDS, SHOWN_BYTES)
    except EndedError:
        rotation.prove()
        return
    raise wrong_port(rotation.address, rotation.servers.port, answered((yield from rest_of_line(data))))


def reach_broadcaster(rotation: Rotation, seconds: float, tell: Tell, *, first: float = 0.0) -> Talk[None]:
    """Connect to a broadcaster; the connection is then ready for a header. `first`: seconds to wait before."""

    def attempt() -> Talk[None]:
        yield from prove_broadcaster(rotation, seconds)
        yield from dial(rotation, seconds)

    return (yield from persistently(rotation, attempt, tell, first=first))


def before(
    deadline: float | None, talk: Talk[Result], clock: Callable[[], float], late: Callable[[], Exception]
) -> Talk[Result]:
    """The result of `talk`, if it has one before `deadline` on `clock`. Raises ``late()`` otherwise.

    Every step of `talk` is shortened to what is left of the time, so a limit for all of it needs no timer.
    """
    if deadline is None:
        return (yield from talk)
    try:
        step = next(talk)
        while True:
            left = deadline - clock()
            if left <= 0:
                talk.close()
                raise late()
            try:
                heard = yield step._replace(seconds=min(step.seconds, left))
            except OSError as error:
                if clock() >= deadline:
                    talk.close()
                    raise late() from None
                step = talk.throw(error)
            else:
                step = talk.send(heard)
    except StopIteration as stop:
        result: Result = stop.value
        return result
