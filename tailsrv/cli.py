"""The command line of `tailsrv`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tailsrv.options import Options
from tailsrv.server import Broadcaster
from tailsrv_runtime.command import run_command
from tailsrv_runtime.daemon import run_daemon
from tailsrv_runtime.option_types import Duration, Size, WholeNumber
from tailsrv_runtime.options import common_options, common_settings

if TYPE_CHECKING:
    from tailsrv.supervisor import Supervisor


@click.command(
    name="tailsrv",
    epilog="A client sends one line, START [STOP]: START is a byte offset, -N (from the end) or end; "
    "STOP is a number of bytes, or now. The server sends the file's bytes and nothing else. "
    "BYTES take units (64KiB, 10M), DURATIONs too (500ms, 30s, 7d; a bare number is seconds).",
)
@click.argument("file", metavar="FILE")
@click.option(
    "--header-timeout",
    type=Duration(),
    default="10s",
    show_default=True,
    help="Time that a client has to send its header.",
)
@click.option(
    "--drain",
    type=Duration(allow_zero=True),
    default="5s",
    show_default=True,
    help="Time that clients have to read the remaining bytes at shutdown.",
)
@click.option("--linger-after-file-is-gone", is_flag=True, help="Keep serving a file that was moved or deleted.")
@click.option("--no-commit-mark", is_flag=True, help="Ignore FILE.commit and serve the whole file.")
@click.option(
    "--poll",
    type=Duration(),
    help="Interval at which FILE is polled, for file systems without inotify events (default: off).",
)
@click.option(
    "--replay-rate", type=Size(), help="Per-client replay rate limit in bytes per second (default: unlimited)."
)
@click.option(
    "--workers",
    type=WholeNumber(1, 1024),
    default="1",
    show_default=True,
    help="Number of serving processes, 1 to 1024.",
)
@common_options
def command(**values: Any) -> None:  # noqa: ANN401 - values of click; Options has their types
    """Broadcast the growing FILE to every client."""
    settings = common_settings(values)
    options = Options(commit_mark=not settings.pop("no_commit_mark"), **settings)
    server = Broadcaster if options.workers == 1 else _supervisor()
    sys.exit(run_daemon("tailsrv", options, lambda reactor, log: server(reactor, options, log)))


def _supervisor() -> type[Supervisor]:
    from tailsrv.supervisor import Supervisor  # noqa: PLC0415 - a single process does not need it

    return Supervisor


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV")
