"""A log event as a line for a terminal.

    21:30:43 collate  listening on [::]:4322 (raw), [::]:4323 (acknowledged)
    21:31:07 collate  warning: disk full: No space left on device; free some space (path=/srv/events.log)

The parts: local time, the daemon, the level of a warning or an error, the event, its error, the advice, all other
facts. Lines are at most `COLUMNS` wide; a longer one continues, indented, on the next. A word that is longer than a
line, such as a path, is not divided, so that it can be copied. Pure: the time comes with the event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS: Final = 100
NAME_COLUMNS: Final = 7  # "collate" and "tailsrv", the longest

STYLES: Final[dict[str, dict[str, Any]]] = {
    "debug": {"dim": True},
    "warning": {"fg": "yellow"},
    "error": {"fg": "red", "bold": True},
}

INTRODUCED: Final = frozenset({"timestamp", "level", "event", "error", "advice"})
"""The keys that have a place of their own in a line."""


def render(daemon: str, event: Mapping[str, Any], *, colours: bool) -> str:
    """The line for `event`, whose keys are those of a structlog event; without the line's end."""
    level = event["level"]
    name = f"{event['event']}" if level in {"info", "debug"} else f"{level}: {event['event']}"
    text = name + _listeners(event) if "addresses" in event else name + _details(event)
    start = f"{event['timestamp']} {daemon.removeprefix('tailsrv-'):<{NAME_COLUMNS}}  "
    lines = _fold(text, COLUMNS - len(start))
    if colours:
        start = click.style(start, dim=True)
        if level in STYLES and lines[0].startswith(name):
            lines[0] = click.style(name, **STYLES[level]) + lines[0][len(name) :]
    indent = "\n" + " " * (len(event["timestamp"]) + NAME_COLUMNS + 3)
    return start + indent.join(lines)


def _listeners(event: Mapping[str, Any]) -> str:
    """The addresses of a `listening` event, each with its role if there are several roles."""
    roles = {key: value for key, value in event.items() if key not in {"addresses", *INTRODUCED}}
    if len(roles) < 2:
        return f" on {', '.join(event['addresses'])}"
    return " on " + ", ".join(f"{address} ({role})" for role, of_role in roles.items() for address in of_role)


def _details(event: Mapping[str, Any]) -> str:
    error = f": {event['error']}" if "error" in event else ""
    advice = f"; {event['advice']}" if "advice" in event else ""
    facts = ", ".join(f"{key}={_value(value)}" for key, value in event.items() if key not in INTRODUCED)
    return f"{error}{advice} ({facts})" if facts else error + advice


def _value(value: object) -> str:
    """A fact's value as an operator would write it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    text = str(value)
    return f'"{text}"' if not text or " " in text else text


def _fold(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width`, divided at blanks."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
