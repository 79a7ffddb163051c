r"""A message as it is printed. Pure.

%n number   %o offset   %e end   %S bytes of the payload   %s payload   %t time   %%        \n \t \r \0 \\
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tailsrv_formats.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.protocol.messages import Message
    from tailsrv_formats.framing import Framing

    Render = Callable[[Message, int | None, str | None], bytes]
    """A message, its number and its time, where they are known."""

_FIELDS: Final[dict[str, Render]] = {
    "n": lambda _message, number, _time: b"?" if number is None else b"%d" % number,
    "o": lambda message, _number, _time: b"%d" % message.offset,
    "e": lambda message, _number, _time: b"%d" % message.end,
    "S": lambda message, _number, _time: b"%d" % len(message.payload),
    "s": lambda message, _number, _time: message.payload,
    "t": lambda _message, _number, time: b"?" if time is None else time.encode(),
    "%": lambda _message, _number, _time: b"%",
}
_ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}


class Template:
    """A parsed `--format`. Raises `UsageError` for an unknown field or escape."""

    def __init__(self, text: str) -> None:
        self.fields: set[str] = set[str]()
        self._parts: list[bytes | Render] = []
        characters = iter(text)
        for character in characters:
            if character == "%":
                self._parts.append(self._field(next(characters, "")))
            elif character == "\\":
                self._parts.append(_escape(next(characters, "")))
            else:
                self._parts.append(character.encode("utf-8", "surrogateescape"))

    def render(self, message: Message, number: int | None, time: str | None) -> bytes:
        """The message as the template says."""
        return b"".join(part if isinstance(part, bytes) else part(message, number, time) for part in self._parts)

    def _field(self, letter: str) -> Render:
        if letter not in _FIELDS:
            raise UsageError(f"--format has no field %{letter}; the fields are %n %o %e %S %s %t %%")
        self.fields.add(letter)
        return _FIELDS[letter]


def _escape(letter: str) -> bytes:
    if letter not in _ESCAPES:
        raise UsageError(rf"--format has no escape \{letter}; the escapes are \n \t \r \0 \\")
    return _ESCAPES[letter]


def render_json(message: Message, number: int | None, time: str | None) -> bytes:
    """One line of JSON. A payload that is not UTF-8 is in `payload_base64` instead of `payload`."""
    facts: dict[str, Any] = {"number": number, "offset": message.offset, "end": message.end}
    if time is not None:
        facts["time"] = time
    try:
        facts["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        facts["payload_base64"] = base64.b64encode(message.payload).decode()
    return msgspec.json.encode(facts) + b"\n"


def raw_renderer(framing: Framing) -> Render:
    """Messages as they are in the stream, with terminator or prefix."""

    def render(message: Message, _number: int | None, _time: str | None) -> bytes:
        return framing.wrap(message.payload)

    return render
