"""Log lines: one event and its facts, on standard error.

On a terminal a line is text (`console_lines`), elsewhere a JSON object. Bytes that peers sent never reach a log
unescaped. Logging never waits: standard error receives lines later when it is slow, and lines that do not fit into the
buffer are dropped and counted (`line_writer`).
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, cast

import msgspec

from tailsrv_runtime import console_lines, standard_error
from tailsrv_runtime.standard_error import one_line

if TYPE_CHECKING:
    from collections.abc import MutableMapping

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FORMATS: Final = ("auto", "console", "json")

SHOWN_OF_PEER: Final = 80
"""Bytes of a peer's input that a log line shows."""

SECONDS_BETWEEN_REPEATS: Final = 10.0


class Log(Protocol):
    """The methods of a structlog logger that daemons use."""

    def debug(self, event: str, **facts: object) -> object:
        """Details for the diagnosis of a fault."""

    def info(self, event: str, **facts: object) -> object:
        """A normal change of state."""

    def warning(self, event: str, **facts: object) -> object:
        """A condition that an operator should look at some day."""

    def error(self, event: str, **facts: object) -> object:
        """A failure that an operator should look at now."""


def configure(daemon: str, level: str = "info", form: str = "auto") -> Log:
    """The logger of `daemon`, which writes events at `level` of `LEVELS` and above, in one of `FORMATS`."""
    import structlog  # noqa: PLC0415 - it loads asyncio; --help and a wrong command line do without

    if is_console(form):
        moment = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        renderer: Any = functools.partial(_to_console, daemon, has_colours())
        bound = {}  # the renderer names the daemon
    else:
        moment = structlog.processors.TimeStamper(fmt="iso", utc=True)
        renderer = structlog.processors.JSONRenderer(serializer=_to_json)
        bound = {"daemon": daemon}
    processors = [structlog.processors.add_log_level, moment, _escape, renderer]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", standard_error.STREAM)),
        cache_logger_on_first_use=True,
    )

    def report(count: int) -> str:
        """The line that states how many lines were dropped, whatever the level."""
        line: Any = {**bound, "count": count, "event": "log lines dropped"}
        for processor in processors:
            line = processor(None, "warning", line)
        return f"{line}\n"

    standard_error.writer().report = report
    return cast("Log", structlog.get_logger(**bound))


def is_console(form: str) -> bool:
    """Whether the format `form` means text here and not JSON: `auto` depends on standard error."""
    return form == "console" or (form == "auto" and standard_error.STREAM.isatty())


def has_colours() -> bool:
    """Whether text on standard error is coloured: on a terminal, unless NO_COLOR is set or TERM is dumb.

    FORCE_COLOR stands in for the terminal: `tailsrv-up` reads its daemons' lines from pipes, and shows them on one.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return standard_error.STREAM.isatty() or bool(os.environ.get("FORCE_COLOR"))


def printable(data: bytes) -> str:
    """The beginning of a peer's input in printable ASCII; all other bytes are escaped."""
    shown = data[:SHOWN_OF_PEER].decode("latin-1").encode("unicode_escape").decode("ascii")
    return shown if len(data) <= SHOWN_OF_PEER else f"{shown}… ({len(data)} bytes)"


# Python imports a codec at its first use, which opens a file. Without this call, that could happen when no
# descriptor is left.
printable(b"")


class Repeated:
    """Limits the rate of an event that peers can cause at will: one line per interval, which counts those left out.

    >>> refused = Repeated(log.warning, "peer refused")
    >>> refused(peer="192.0.2.1")  # written
    >>> refused(peer="192.0.2.2")  # counted; the next line that is written says suppressed=1
    """

    def __init__(self, write: Any, event: str, seconds: float = SECONDS_BETWEEN_REPEATS) -> None:  # noqa: ANN401 - a bound method of `Log`
        self._write = write
        self._event = event
        self._seconds = seconds
        self._next = 0.0
        self._suppressed = 0

    def __call__(self, **facts: object) -> None:
        """Log the event with `facts`, or count it if the last line is too recent."""
        now = time.monotonic()
        if now < self._next:
            self._suppressed += 1
            return
        if self._suppressed:
            facts["suppressed"] = self._suppressed
        self._next = now + self._seconds
        self._suppressed = 0
        self._write(self._event, **facts)


def _to_console(daemon: str, colours: bool, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return console_lines.render(daemon, event, colours=colours)


def _to_json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what could forge a line or break a terminal: control characters, lone surrogates (of file names)."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = one_line(value)
        elif isinstance(value, list | tuple):
            event[key] = [one_line(each) if isinstance(each, str) else each for each in value]
    return event
