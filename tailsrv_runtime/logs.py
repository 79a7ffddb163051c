"""Log lines: one event, its facts as key and value, on standard error.

On a terminal they are for eyes, elsewhere a line is a JSON object. What peers sent never reaches a log unescaped.
Logging never waits: lines that standard error does not take now are written later, or dropped and counted; see
`line_writer`.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec

from tailsrv_runtime import standard_error
from tailsrv_runtime.standard_error import one_line

if TYPE_CHECKING:
    from collections.abc import MutableMapping

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FORMATS: Final = ("auto", "console", "json")

SHOWN_OF_PEER: Final = 80
"""Bytes of a peer's input that a log line shows."""

SECONDS_BETWEEN_REPEATS: Final = 10.0


class Log(Protocol):
    """What daemons need of a structlog logger."""

    def debug(self, event: str, **facts: object) -> object:
        """For who looks for a fault: every connection."""

    def info(self, event: str, **facts: object) -> object:
        """What an operator would want to know in the morning."""

    def warning(self, event: str, **facts: object) -> object:
        """Somebody should look at this some day."""

    def error(self, event: str, **facts: object) -> object:
        """Somebody should look at this now."""


def configure(daemon: str, level: str = "info", form: str = "auto") -> Log:
    """The logger of `daemon`, writing at `level` of `LEVELS` and above in one of `FORMATS`."""
    structlog = _import_structlog()
    terminal = standard_error.STREAM.isatty()
    console = form == "console" or (form == "auto" and terminal)
    processors = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _escape,
        structlog.dev.ConsoleRenderer(colors=terminal)
        if console
        else structlog.processors.JSONRenderer(serializer=_to_json),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=standard_error.STREAM),
        cache_logger_on_first_use=True,
    )
    # On a terminal one sees which daemon it is.
    bound = {} if console else {"daemon": daemon}

    def report(count: int) -> str:
        """The line that says how many were dropped, whatever the level."""
        line: Any = {**bound, "count": count, "event": "log lines dropped"}
        for processor in processors:
            line = processor(None, "warning", line)
        return f"{line}\n"

    standard_error.writer().report = report
    return cast("Log", structlog.get_logger(**bound))


def printable(data: bytes) -> str:
    """The beginning of what a peer sent, fit to be shown: printable ASCII, everything else escaped."""
    shown = data[:SHOWN_OF_PEER].decode("latin-1").encode("unicode_escape").decode("ascii")
    return shown if len(data) <= SHOWN_OF_PEER else f"{shown}… ({len(data)} bytes)"


# Codecs are imported when first used, which opens a file: not at the moment when there are no descriptors left.
printable(b"")


class Repeated:
    """Thins out an event that peers can cause as often as they like: one line in a while, with how many it stands for.

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
        """It happened again; `facts` are written if this one's turn it is."""
        now = time.monotonic()
        if now < self._next:
            self._suppressed += 1
            return
        if self._suppressed:
            facts["suppressed"] = self._suppressed
        self._next = now + self._seconds
        self._suppressed = 0
        self._write(self._event, **facts)


def _to_json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Control characters and lone surrogates, as file names may have them, can't forge a line or break a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = one_line(value)
        elif isinstance(value, list | tuple):
            event[key] = [one_line(each) if isinstance(each, str) else each for each in value]
    return event


class _Deferred(types.ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


def _import_structlog() -> Any:  # noqa: ANN401 - a module
    """Import structlog, but not asyncio: its async methods use it, ours don't, and it costs 7 MiB and 20 ms."""
    if "structlog" not in sys.modules and "asyncio" not in sys.modules:
        sys.modules["asyncio"] = _Deferred("asyncio")
        try:
            return importlib.import_module("structlog")
        finally:
            del sys.modules["asyncio"]
    return importlib.import_module("structlog")
