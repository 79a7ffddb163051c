"""The command line of `tailsrv-up`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import click

from compose.up.options import Options
from tailsrv_formats.framing import FRAMINGS
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.daemon import check_descriptor
from tailsrv_runtime.logs import FORMATS, LEVELS
from tailsrv_runtime.options import run_command


@click.command("tailsrv-up", context_settings={"max_content_width": 100})
@click.argument("file")
@click.option(
    "--base-port",
    type=click.IntRange(0, 65532),
    default=4321,
    show_default=True,
    help="Broadcast there; collate, acknowledged and index on the next three ports. 0: any free ports.",
)
@click.option("--host", default="", help="Listen on this address alone (default: all interfaces).")
@click.option("--framing", type=click.Choice(FRAMINGS), default=FRAMINGS[0], show_default=True)
@click.option(
    "--sync", default="always", show_default=True, help="When the collator syncs: always, never, interval:MS."
)
@click.option("--allow", metavar="CIDR", multiple=True, default=("private",), help="Peers that may connect.")
@click.option("--log-level", type=click.Choice(list(LEVELS)), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(FORMATS), default="auto", show_default=True)
@click.option("--log-file", metavar="PATH", help="Append the daemons' log lines to this file, too.")
@click.option(
    "--ready-fd", type=click.IntRange(min=0), metavar="N", help="Write one line of JSON to N when all listen."
)
@click.version_option(version("tailsrv"), message="%(prog)s %(version)s")
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
