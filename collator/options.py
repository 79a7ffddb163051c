"""What a collator can be told."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tailsrv_formats.addresses import Address  # noqa: TC001 - msgspec reads annotations
from tailsrv_formats.errors import UsageError
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES, FRAMINGS
from tailsrv_runtime.options import CommonOptions

DEFAULT_BUFFER_BYTES: Final = 256 << 20
LEAST_BUFFER_BYTES: Final = 1 << 16
LONGEST_INTERVAL_MS: Final = 3_600_000


class Sync(msgspec.Struct, frozen=True):
    """When what was written is made durable."""

    kind: Literal["always", "never", "interval"]
    seconds: float = 0.0
    """Of `interval`: how long written bytes wait for their sync at most."""


def parse_sync(text: str) -> Sync:
    """`always`, `never` or ``interval:MS``. Raises `UsageError` for anything else."""
    if text == "always":
        return Sync("always")
    if text == "never":
        return Sync("never")
    digits = text.removeprefix("interval:")
    if digits != text and digits.isascii() and digits.isdigit() and len(digits) <= 7:
        milliseconds = int(digits)
        if 1 <= milliseconds <= LONGEST_INTERVAL_MS:
            return Sync("interval", milliseconds / 1000)
    raise UsageError(f"--sync {text}: write always, never or interval:MS (1 to {LONGEST_INTERVAL_MS} milliseconds)")


class Options(CommonOptions, frozen=True, kw_only=True):
    """The settings of one collator. `listen` is the raw lane."""

    file: str
    ack_listen: tuple[Address, ...] = ()
    framing: str = FRAMINGS[0]
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    sync: Sync = Sync("always")
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    adopt: bool = False
    """Accept FILE as it is, and forget its producers."""
    accept_any_message: bool = False
    """Do not look for clients of other ports on the raw port: what they say first becomes a message."""
