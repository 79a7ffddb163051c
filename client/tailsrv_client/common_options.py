"""The options that `tailsrv-cat` and `tailsrv-put` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailsrv_client.command_line import size_of_at_least
from tailsrv_formats.framing import FRAMINGS
from tailsrv_formats.quantities import parse_duration

if TYPE_CHECKING:
    from tailsrv_client.command_line import Command


def add_framing_option(command: Command) -> None:
    """Add ``--framing``."""
    command.option(
        "--framing",
        choices=FRAMINGS,
        default=FRAMINGS[0],
        help="How messages are delimited: by a terminator or by a length prefix.",
    )


def add_common_options(command: Command, *, timeout: str, max_message_bytes: str) -> None:
    """Add ``--timeout`` with the help `timeout`, ``--progress`` and ``--max-message-bytes`` with its default."""
    command.option("--timeout", convert=parse_duration, metavar="DURATION", help=timeout)
    command.option(
        "--progress",
        const=True,
        default=False,
        help="Show progress from the start, and also where standard error is not a terminal.",
    )
    command.option(
        "--max-message-bytes",
        convert=size_of_at_least(1),
        default=max_message_bytes,
        metavar="BYTES",
        help="Largest valid message, including its terminator or prefix.",
    )
