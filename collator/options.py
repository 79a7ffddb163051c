"""The settings of one collator."""

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
    """When written bytes are made durable."""

    kind: Literal["always", "never", "interval"]
    seconds: float = 0.0
    """For `interval`: the longest time that written bytes wait for their sync."""


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
    raise UsageError(f"--sync {text}: write always, never or interval:MS (MS: 1 to {LONGEST_INTERVAL_MS} milliseconds)")


class Options(CommonOptions, frozen=True, kw_only=True):
    """The command line of `tailsrv-collate`, checked. `listen` is the raw port."""

    file: str
    ack_listen: tuple[Address, ...] = ()
    """The addresses of the acknowledged port."""
    framing: str = FRAMINGS[0]
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """The largest valid message, including its terminator or prefix."""
    sync: Sync = Sync("always")
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    """Memory for all bytes that are not committed yet."""
    adopt: bool = False
    """Whether FILE is accepted as it is, and its producers are forgotten."""
    accept_any_message: bool = False
    """Whether the raw port also appends what looks like the first line of a client of another protocol."""
