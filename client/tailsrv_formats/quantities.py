"""Sizes and durations as people write them.

10M   1GiB   64KiB   4096              bytes: K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024; a B may follow
500ms   30s   5m   2h   7d   1.5       seconds, unless there is another unit
"""

from __future__ import annotations

import re
from typing import Final

from tailsrv_formats.errors import UsageError

_NUMBER: Final = r"(?P<number>[0-9]{1,19}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_SIZE: Final = re.compile(_NUMBER + r" ?(?:(?P<prefix>[KMGTkmgt])(?P<binary>i?))?[Bb]?")
_DURATION: Final = re.compile(_NUMBER + r" ?(?P<unit>ms|s|m|h|d|)")
_POWERS: Final = {"K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

LARGEST_SIZE: Final = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Bytes, 0 to 2**63 - 1. Raises `UsageError`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size; write 4096, 64KiB, 10M or 1GiB")
    power = _POWERS[match["prefix"].upper()] if match["prefix"] else 0
    size = float(match["number"]) if "." in match["number"] else int(match["number"])
    size *= (1024 if match["binary"] else 1000) ** power
    if size > LARGEST_SIZE or size != int(size):
        raise UsageError(f"{text!r} is not a whole number of bytes below 2**63")
    return int(size)


def parse_duration(text: str, *, allow_zero: bool = False) -> float:
    """Seconds, more than 0; or 0, with `allow_zero`. Raises `UsageError`."""
    match = _DURATION.fullmatch(text)
    seconds = -1.0 if match is None else float(match["number"]) * _SECONDS[match["unit"]]
    if seconds < 0 or not (seconds or allow_zero):
        raise UsageError(f"{text!r} is not a duration; write 30s, 500ms, 5m, 2h or 7d")
    return seconds


def format_size(size: int) -> str:
    """What `parse_size` reads, exactly: 64MiB, 10M, 4097."""
    for base, suffix in ((1024, "iB"), (1000, "")):
        for prefix, power in reversed(_POWERS.items()):
            unit = base**power
            if size and not size % unit:
                return f"{size // unit}{prefix}{suffix}"
    return str(size)


def format_duration(seconds: float) -> str:
    """What `parse_duration` reads: 7d, 30s, 500ms, 1.5s."""
    for unit in ("d", "h", "m"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"
