r"""The acknowledged lane's words, and how far each producer is.

    producer: NAME "\n"          server: ACKED AT "\n"          producer: its stream from byte ACKED on

Pure: knows neither sockets nor files.
"""

from __future__ import annotations

import re
from typing import Final

NAME_BYTES: Final = 128
NAME_LINE_BYTES: Final = NAME_BYTES + 2
"""The longest name line: a carriage return and the newline."""

_NAME: Final = re.compile(rb"[A-Za-z0-9._:-]{0,128}")


class NameError_(ValueError):  # noqa: N801, N818 - NameError is Python's
    """What a producer sent can't be its name."""


def read_name(line: bytes) -> bytes | None:
    """The name in what a producer has sent so far; None while its newline is missing; empty: anonymous.

    Raises `NameError_` as soon as no further byte would make it a name.
    """
    if not line.endswith(b"\n"):
        if len(line) >= NAME_LINE_BYTES:
            raise NameError_(f"a name line has at most {NAME_LINE_BYTES} bytes")
        return None
    name = line[:-1].removesuffix(b"\r")
    if not _NAME.fullmatch(name):
        raise NameError_(f"a name is 1 to {NAME_BYTES} of A-Z a-z 0-9 . _ : - or empty")
    return name


class Progress:
    """How far one producer's stream has come. Named ones outlive their connections, and the daemon."""

    __slots__ = ("acked", "at", "gathered", "in_flight", "number")

    def __init__(self, acked: int = 0, at: int = 0) -> None:
        self.acked = acked
        """Bytes of its stream that are committed."""
        self.at = at
        """The offset in the file where they end."""
        self.gathered = acked
        """Bytes of its stream that are committed or in a batch."""
        self.in_flight = 0
        """Batches under way that hold bytes of it."""
        self.number = -1
        """What the journal calls it; -1 while the journal does not know it."""

    def line(self) -> bytes:
        """What the producer is told."""
        return b"%d %d\n" % (self.acked, self.at)


def note_run(runs: list[int], acked: int, start: int, end: int) -> None:
    """Note in `runs` (pairs ACKED, AT) that bytes up to `acked` stand at `start` to `end` in the file.

    What stands right behind the last run extends it: a line says that the bytes since the line before stand
    contiguous, so each run gets a line of its own.
    """
    if runs and runs[-1] == start:
        runs[-2] = acked
        runs[-1] = end
    else:
        runs += (acked, end)


def run_lines(runs: list[int]) -> bytes:
    """The lines that acknowledge `runs`."""
    return b"%d %d\n" % (runs[0], runs[1]) if len(runs) == 2 else b"%d %d\n" * (len(runs) // 2) % tuple(runs)


def error_line(why: str) -> bytes:
    """The last line that a producer hears when it is at fault; `why` begins with "busy, " where trying again helps."""
    return f"error: {why}\n".encode("ascii", "backslashreplace")
