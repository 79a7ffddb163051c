"""The command line of `tailsrv-put`."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any, NoReturn

import click

from tailsrv_client.durations import Duration
from tailsrv_client.protocol.ports import ACKNOWLEDGED, RAW
from tailsrv_client.protocol.servers import parse_addresses
from tailsrv_client.protocol.session import check_name
from tailsrv_client.put.options import Options
from tailsrv_client.terminal import Progress, log_to_standard_error, run_command, say
from tailsrv_formats.errors import UsageError
from tailsrv_formats.framing import FRAMINGS

NAME = "tailsrv-put"


@click.command(
    name=NAME,
    epilog='Completion: eval "$(_TAILSRV_PUT_COMPLETE=bash_source tailsrv-put)" in bash, zsh_source in zsh; in fish '
    "_TAILSRV_PUT_COMPLETE=fish_source tailsrv-put | source.",
)
@click.argument("addresses", metavar="ADDR[,ADDR...]")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-", metavar="[FILE]")
@click.option("--name", metavar="NAME", help="Send as this producer: each message once.  [default: anonymous]")
@click.option("--raw", is_flag=True, help="Send to the raw port, where nothing is acknowledged.")
@click.option("--framing", type=click.Choice(FRAMINGS), default="newline", show_default=True)
@click.option(
    "--spool",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Keep there what is not acknowledged, also across a kill.",
)
@click.option(
    "--follow",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Send FILE as it grows, through rotations; what was sent once is not sent again.",
)
@click.option("--once", is_flag=True, help="With --follow: end when all that there is has been acknowledged.")
@click.option("--ignore-rotated", is_flag=True, help="With --follow: leave FILE.1 ... alone, unless partly sent.")
@click.option(
    "--timeout",
    type=Duration(),
    metavar="SECONDS",
    help="Exit 3 after so long without an acknowledgement while something is unacknowledged.  [default: never]",
)
@click.option("--progress", is_flag=True, help="Show bytes and rate, also where standard error is no terminal.")
@click.option("--max-message-bytes", type=click.IntRange(min=1), default=1 << 20, show_default=True, metavar="N")
@click.version_option(version("tailsrv"), message="%(prog)s %(version)s")
def command(**values: Any) -> None:  # noqa: ANN401 - click's values, which Options takes over
    """Send standard input, or FILE, or what is appended to a file, to a collator.

    ADDR is an acknowledged port: a host alone means port 4323. With --name or --follow each message is in the stream
    exactly once; without a name, what was not acknowledged when a connection broke may be there twice. With --raw it
    is a raw port, by default 4322.
    """
    options = Options(**values)
    check(options)
    log_to_standard_error(NAME)
    tell = partial(say, NAME)
    progress = Progress(forced=options.progress, total=None)
    if options.follow is not None:
        from tailsrv_client.put.following import Follower  # noqa: PLC0415 - inotify is for who follows

        Follower(options, progress, tell).run()
    else:
        from tailsrv_client.put.sending import send  # noqa: PLC0415 - and this for who does not

        send(options, progress, tell)


def check(options: Options) -> None:
    """What is wrong with the command line. Raises `UsageError`."""
    parse_addresses(options.addresses, RAW if options.raw else ACKNOWLEDGED)
    if options.raw and (options.name is not None or options.follow is not None or options.spool is not None):
        raise UsageError("--raw knows no names and no acknowledgements: leave out --name, --spool and --follow")
    if options.name is not None:
        check_name(options.name)
    if options.follow is None:
        if options.once or options.ignore_rotated:
            raise UsageError("--once and --ignore-rotated go with --follow")
        if options.spool is not None and not options.name:
            raise UsageError("--spool keeps what a producer has not had acknowledged: give it a --name")
    elif options.file != "-" or options.spool is not None:
        raise UsageError("--follow FILE is all that is sent, and its own spool: leave out [FILE] and --spool")


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV_PUT")
