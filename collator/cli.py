"""The command line of `tailsrv-collate`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from collator.options import DEFAULT_BUFFER_BYTES, LEAST_BUFFER_BYTES, Options, parse_sync
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES
from tailsrv_formats.quantities import format_size
from tailsrv_runtime.command import run_command
from tailsrv_runtime.option_types import PORT, ListenAddress, Size
from tailsrv_runtime.options import common_options, common_settings, framing_option, listen_addresses

sync_option = click.option(
    "--sync",
    metavar="[always|never|interval:MS]",
    default="always",
    show_default=True,
    help="When messages are acknowledged and visible to consumers: once on disk (always), once the kernel has them"
    " (never), or as never with a sync every MS milliseconds (interval:MS).",
)


@click.command(
    "tailsrv-collate",
    epilog="--port and --listen name the raw port, where producers receive no reply. --ack-port and --ack-listen name"
    " the acknowledged port, where producers learn how many of their bytes are committed."
    " BYTES take units: 64KiB, 10M, 1GiB.",
)
@click.argument("file", metavar="FILE")
@framing_option
@click.option(
    "--max-message-bytes",
    type=Size(1, 1 << 40),
    default=format_size(DEFAULT_MAX_MESSAGE_BYTES),
    show_default=True,
    help="Largest valid message, including its terminator or prefix.",
)
@click.option("--ack-port", type=PORT, help="Acknowledged port, on all interfaces, IPv4 and IPv6 (0: any free).")
@click.option(
    "--ack-listen",
    type=ListenAddress(),
    multiple=True,
    help="Address of the acknowledged port (repeatable), in the forms of --listen.",
)
@sync_option
@click.option(
    "--buffer-bytes",
    type=Size(LEAST_BUFFER_BYTES, 1 << 40),
    default=format_size(DEFAULT_BUFFER_BYTES),
    show_default=True,
    help=f"Memory for all bytes that are not committed yet, {format_size(LEAST_BUFFER_BYTES)} or more.",
)
@click.option("--adopt", is_flag=True, help="Accept FILE as it is and discard its journal: all producers start at 0.")
@click.option(
    "--accept-any-message",
    is_flag=True,
    help="Do not refuse clients of other protocols on the raw port: their first line (an HTTP request, an offset, a"
    " producer's name) is appended as a message.",
)
@common_options
def command(**values: Any) -> None:  # noqa: ANN401 - click's signature
    """Append the messages of many producers to FILE."""
    values["sync"] = parse_sync(values["sync"])
    values["ack_listen"] = listen_addresses(values.pop("ack_port"), values["ack_listen"])
    options = Options(**common_settings(values))
    from collator.server import Collator  # noqa: PLC0415 - after the command line is known to be right
    from tailsrv_runtime.daemon import run_daemon  # noqa: PLC0415 - the same

    sys.exit(run_daemon("tailsrv-collate", options, lambda reactor, log: Collator(reactor, options, log)))


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV_COLLATE")
