"""The command line of `tailsrv-up`."""

from __future__ import annotations

import sys
from typing import Any

import click

from compose.up.options import Options
from tailsrv_formats.framing import FRAMINGS
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.command import run_command
from tailsrv_runtime.daemon import check_descriptor
from tailsrv_runtime.option_types import DESCRIPTOR, WholeNumber
from tailsrv_runtime.options import allow_option, log_format_option, log_level_option, version_option


@click.command("tailsrv-up")
@click.argument("file", metavar="FILE")
@click.option(
    "--base-port",
    type=WholeNumber(0, 65532, "PORT"),
    default="4321",
    show_default=True,
    help="Broadcast there; collate, acknowledged and index on the next three ports. 0: any free ports.",
)
@click.option("--host", default="", help="Listen on this address alone (default: all interfaces).")
@click.option(
    "--framing",
    type=click.Choice(FRAMINGS),
    default=FRAMINGS[0],
    show_default=True,
    help="How messages are delimited: by a terminator or by a length prefix.",
)
@click.option(
    "--sync", default="always", show_default=True, help="When the collator syncs: always, never, interval:MS."
)
@allow_option
@log_level_option
@log_format_option
@click.option("--log-file", metavar="PATH", help="Append the daemons' log lines to this file, too.")
@click.option("--ready-fd", type=DESCRIPTOR, help="Write one line of JSON to N when all listen.")
@version_option
def command(**values: Any) -> None:  # noqa: ANN401 - click's values
    """Start the broadcaster, the collator and the indexer of the stream FILE, and stop them together.

    FILE is created when it does not exist. The first of them that ends, ends all, and the exit code is not 0 then.
    """
    AllowList(values["allow"])
    options = Options(**values)
    if options.ready_fd is not None:
        check_descriptor(options.ready_fd)
    # Imported in this order for what it saves: first all that the daemons share, then what the launcher alone needs.
    from compose.up.parts import parts_of, start_all  # noqa: PLC0415

    parts, problem = start_all(parts_of(options), options.ready_fd)
    from compose.up.launcher import Launcher  # noqa: PLC0415

    sys.exit(Launcher(options, parts, problem).run())


def main() -> None:
    """Run as the whole process."""
    run_command(command, "TAILSRV_UP")
