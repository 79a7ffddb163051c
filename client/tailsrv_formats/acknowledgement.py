r"""The lines of the acknowledged port.

    producer: NAME "\n"          server: ACKED AT "\n"          producer: its stream from byte ACKED on

This module knows no sockets and no files.
"""

from __future__ import annotations

import re
from typing import Final

from tailsrv_formats.errors import TailsrvError

NAME_BYTES: Final = 128
NAME_LINE_BYTES: Final = NAME_BYTES + 2
"""The longest name line, with a carriage return and the newline."""

_NAME: Final = re.compile(rb"[A-Za-z0-9._:-]{0,128}")


class InvalidNameError(TailsrvError, ValueError):
    """The bytes that a producer sent are no valid name."""


def read_name(line: bytes) -> bytes | None:
    """The name in the bytes that a producer has sent; None while the newline is missing; empty: anonymous.

    Raises `InvalidNameError` as soon as no further byte can make it valid.
    """
    if not line.endswith(b"\n"):
        if len(line) >= NAME_LINE_BYTES:
            raise InvalidNameError(f"name line too long: at most {NAME_LINE_BYTES} bytes")
        return None
    name = line[:-1].removesuffix(b"\r")
    if not _NAME.fullmatch(name):
        raise InvalidNameError(f"invalid name: use 1 to {NAME_BYTES} of A-Z a-z 0-9 . _ : - or none")
    return name


def run_lines(runs: list[int]) -> bytes:
    """The lines that acknowledge `runs`, pairs of ACKED and AT."""
    return b"%d %d\n" % (runs[0], runs[1]) if len(runs) == 2 else b"%d %d\n" * (len(runs) // 2) % tuple(runs)


def error_line(why: str) -> bytes:
    """The last line that a rejected producer receives; `why` begins with "busy, " if it may try again."""
    return f"error: {why}\n".encode("ascii", "backslashreplace")
