"""The command line of `tailsrv-index`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from indexer.options import DEFAULT_INTERVAL, DEFAULT_MAX_MESSAGE_BYTES, SUFFIX, Options
from tailsrv_formats.quantities import format_size
from tailsrv_runtime.command import run_command
from tailsrv_runtime.option_types import Size
from tailsrv_runtime.options import common_options, common_settings, framing_option, poll_option


@click.command(
    "tailsrv-index", epilog="BYTES take units (64KiB, 10M), DURATIONs too (500ms, 30s, 7d; a bare number is seconds)."
)
@click.argument("file", metavar="FILE")
@framing_option
@click.option(
    "--max-message-bytes",
    type=Size(),
    default=format_size(DEFAULT_MAX_MESSAGE_BYTES),
    show_default=True,
    help="Largest valid message; the index ends before a longer one.",
)
@click.option(
    "--interval-bytes",
    type=Size(64, 1 << 24),
    default=format_size(DEFAULT_INTERVAL),
    show_default=True,
    help="Distance between two index entries in bytes of the stream, 64 to 16MiB.",
)
@click.option("--index", metavar="PATH", help=f"Path of the index (default: FILE{SUFFIX}).")
@click.option("--rebuild", is_flag=True, help="Build the index from scratch; shows progress on a terminal.")
@click.option("--no-commit-mark", is_flag=True, help="Ignore FILE.commit and index the whole file.")
@poll_option
@common_options
def command(**values: Any) -> None:  # noqa: ANN401 - click's values, which Options takes over
    """Answer where messages of the growing FILE start: message numbers and times to byte offsets."""
    settings = common_settings(values)
    settings["index"] = settings["index"] or settings["file"] + SUFFIX
    options = Options(commit_mark=not settings.pop("no_commit_mark"), **settings)
    from indexer.server import IndexServer  # noqa: PLC0415 - after the command line is known to be right
    from tailsrv_runtime.daemon import run_daemon  # noqa: PLC0415 - the same

    sys.exit(run_daemon("tailsrv-index", options, lambda reactor, log: IndexServer(reactor, options, log)))


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV_INDEX")
