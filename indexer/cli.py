"""The command line of `tailsrv-index`: options only."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from indexer.options import DEFAULT_INTERVAL, DEFAULT_MAX_MESSAGE_BYTES, SUFFIX, Options
from tailsrv_formats.framing import FRAMINGS
from tailsrv_runtime.options import Seconds, common_options, common_settings, run_command


@click.command("tailsrv-index")
@click.argument("file", metavar="FILE")
@click.option("--framing", type=click.Choice(FRAMINGS), default="newline", show_default=True, help="What a message is.")
@click.option(
    "--max-message-bytes",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_MESSAGE_BYTES,
    show_default=True,
    help="A longer message makes no sense: what lies before it is answered.",
)
@click.option(
    "--interval-bytes",
    type=click.IntRange(min=64, max=1 << 24),
    default=DEFAULT_INTERVAL,
    show_default=True,
    help="One index entry at most every so many bytes.",
)
@click.option("--index", metavar="PATH", help=f"The index.  [default: FILE{SUFFIX}]")
@click.option("--rebuild", is_flag=True, help="Start the index anew; shows progress on a terminal.")
@click.option("--no-commit-mark", is_flag=True, help="Index all that FILE holds, committed or not.")
@click.option("--poll", type=Seconds(min=0, min_open=True), metavar="SECONDS", help="Also look at FILE that often.")
@common_options
def command(**values: Any) -> None:  # noqa: ANN401 - click's values, which Options takes over
    """Answer where messages start in FILE, a stream that grows."""
    settings = common_settings(values)
    settings["index"] = settings["index"] or settings["file"] + SUFFIX
    options = Options(commit_mark=not settings.pop("no_commit_mark"), **settings)
    from indexer.server import IndexServer  # noqa: PLC0415 - after the command line is known to be right
    from tailsrv_runtime.daemon import run_daemon  # noqa: PLC0415 - the same

    sys.exit(run_daemon("tailsrv-index", options, lambda reactor, log: IndexServer(reactor, options, log)))


def main() -> NoReturn:
    """Run the command; ends the process."""
    run_command(command, "TAILSRV_INDEX")
