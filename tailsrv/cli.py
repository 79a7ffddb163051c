"""The command line of `tailsrv`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tailsrv.options import Options
from tailsrv.server import Broadcaster
from tailsrv_runtime.daemon import run_daemon
from tailsrv_runtime.options import Seconds, common_options, common_settings, run_command

if TYPE_CHECKING:
    from tailsrv.workers import Supervisor

SECONDS = Seconds(min=0)
SOME_SECONDS = Seconds(min=0, min_open=True)


@click.command(
    name="tailsrv",
    epilog="A client sends one line, START [STOP]: START is a byte offset, -N (from the end) or end; "
    "STOP is a number of bytes, or now. It gets the file's bytes, and nothing else.",
)
@click.argument("file", metavar="FILE")
@common_options
@click.option(
    "--header-timeout",
    type=SOME_SECONDS,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a client may take to say what it wants.",
)
@click.option(
    "--drain",
    type=SECONDS,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="At the end, how long clients may take to read what is due to them.",
)
@click.option("--linger-after-file-is-gone", is_flag=True, help="Go on serving a file that was moved or deleted.")
@click.option("--no-commit-mark", is_flag=True, help="Serve bytes that FILE.commit does not cover.")
@click.option("--poll", type=SOME_SECONDS, metavar="SECONDS", help="Also look at the file that often.")
@click.option(
    "--replay-rate",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="At most so many bytes per second to each client that is behind.",
)
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N", help="Processes that serve."
)
def command(**values: Any) -> None:  # noqa: ANN401 - click's values, which Options takes over
    """Broadcast the growing FILE to everybody who connects."""
    settings = common_settings(values)
    options = Options(commit_mark=not settings.pop("no_commit_mark"), **settings)
    server = Broadcaster if options.workers == 1 else _supervisor()
    sys.exit(run_daemon("tailsrv", options, lambda reactor, log: server(reactor, options, log)))


def _supervisor() -> type[Supervisor]:
    from tailsrv.workers import Supervisor  # noqa: PLC0415 - one process needs none

    return Supervisor


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV")
