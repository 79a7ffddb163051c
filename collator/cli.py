"""The command `tailsrv-collate`: options only."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from collator.options import DEFAULT_BUFFER_BYTES, LEAST_BUFFER_BYTES, Options, parse_sync
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES, FRAMINGS
from tailsrv_runtime.options import PORT, Listen, addresses, common_options, common_settings, run_command


@click.command("tailsrv-collate")
@click.argument("file")
@click.option("--framing", type=click.Choice(FRAMINGS), default=FRAMINGS[0], show_default=True)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(1, 1 << 40),
    default=DEFAULT_MAX_MESSAGE_BYTES,
    show_default=True,
    help="The longest message, its terminator or prefix included.",
)
@click.option("--ack-port", type=PORT, help="The acknowledged lane, on all interfaces.")
@click.option("--ack-listen", type=Listen(), multiple=True, help="The acknowledged lane: as --listen.")
@click.option(
    "--sync",
    metavar="always|never|interval:MS",
    default="always",
    show_default=True,
    help="When bytes are acknowledged and shown: once on the disk, or once the kernel has them.",
)
@click.option(
    "--buffer-bytes",
    type=click.IntRange(LEAST_BUFFER_BYTES, 1 << 40),
    default=DEFAULT_BUFFER_BYTES,
    show_default=True,
    help="All memory for bytes that are not committed yet.",
)
@click.option("--adopt", is_flag=True, help="Accept FILE as it is, and forget its producers.")
@click.option(
    "--accept-any-message",
    is_flag=True,
    help="On the raw port, take also for a message what a client of another port says first: `0`, `NAME` with a"
    " carriage return, an HTTP request.",
)
@common_options
def command(**values: Any) -> None:  # noqa: ANN401 - click's signature
    """Append what many producers send to FILE, message by message.

    --port and --listen are the raw lane, where producers hear nothing back; --ack-port and --ack-listen are the
    acknowledged one, where they learn what is committed.
    """
    values["sync"] = parse_sync(values["sync"])
    values["ack_listen"] = addresses(values.pop("ack_port"), values["ack_listen"])
    options = Options(**common_settings(values))
    from collator.server import Collator  # noqa: PLC0415 - after the command line is known to be right
    from tailsrv_runtime.daemon import run_daemon  # noqa: PLC0415 - the same

    sys.exit(run_daemon("tailsrv-collate", options, lambda reactor, log: Collator(reactor, options, log)))


def main() -> NoReturn:
    """Run the command."""
    run_command(command, "TAILSRV_COLLATE")
