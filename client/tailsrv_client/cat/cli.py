"""The command line of `tailsrv-cat`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, NoReturn

import click

from tailsrv_client.cat.copying import run
from tailsrv_client.cat.options import Options
from tailsrv_client.durations import Duration
from tailsrv_client.protocol.places import parse_start, parse_until
from tailsrv_client.protocol.ports import BROADCAST, INDEX
from tailsrv_client.protocol.servers import parse_addresses
from tailsrv_client.terminal import log_to_standard_error, run_command
from tailsrv_formats.framing import FRAMINGS
from tailsrv_runtime.environment import ValueFlag

NAME = "tailsrv-cat"


@click.command(
    name=NAME,
    epilog='Completion: eval "$(_TAILSRV_CAT_COMPLETE=bash_source tailsrv-cat)" in bash, zsh_source in zsh; in fish '
    "_TAILSRV_CAT_COMPLETE=fish_source tailsrv-cat | source.",
)
@click.argument("addresses", metavar="ADDR[,ADDR...]")
@click.option("--index", metavar="ADDR", help="The stream's indexer: for message:N, last:N, time:T, %n, %t, --lag.")
@click.option(
    "--from",
    "start",
    default="start",
    show_default=True,
    metavar="PLACE",
    help="start, end, BYTE, -BYTES, message:N, last:N or time:T.",
)
@click.option("--until", metavar="PLACE", help="Stop before now, BYTE, message:N or time:T.  [default: follow]")
@click.option("--count", type=click.IntRange(min=0), metavar="N", help="Stop after N messages (with --grep: matches).")
@click.option("--framing", type=click.Choice(FRAMINGS), default="newline", show_default=True)
@click.option(
    "--raw", "form", cls=ValueFlag, flag_value="raw", default=True, help="Bytes as they stand in the stream (default)."
)
@click.option("--json", "form", cls=ValueFlag, flag_value="json", help="A JSON object a line for each message.")
@click.option("--format", "template", metavar="TEXT", help=r"Such as '%n %o %t %s\n'; also %e (end), %S (size).")
@click.option(
    "--checkpoint", type=click.Path(dir_okay=False), metavar="FILE", help="Go on where FILE says; keep it up to date."
)
@click.option("--grep", metavar="REGEX", help="Only messages that match.")
@click.option("--lag", is_flag=True, help="Say once a second on standard error how far behind it is.")
@click.option(
    "--timeout",
    type=Duration(),
    metavar="SECONDS",
    help="Exit 3 after so long without a working connection; an idle stream is none.  [default: never]",
)
@click.option("--progress", is_flag=True, help="Show bytes and rate, also where standard error is no terminal.")
@click.option("--max-message-bytes", type=click.IntRange(min=1), default=64 << 20, show_default=True, metavar="N")
@click.version_option(version("tailsrv"), message="%(prog)s %(version)s")
def command(**values: Any) -> None:  # noqa: ANN401 - click's values, which Options takes over
    """Copy a stream to standard output, and follow it as it grows.

    ADDR is a broadcaster; a host alone means port 4321 (--index: 4324). A lost connection is made again at the byte
    where it was, at the next ADDR when one is down.
    """
    if values["template"] is not None:
        values["form"] = "format"
    options = Options(**{name: value for name, value in values.items() if value is not None})
    parse_addresses(options.addresses, BROADCAST)
    if options.index is not None:
        parse_addresses(options.index, INDEX)
    parse_start(options.start)
    parse_until(options.until)
    log_to_standard_error(NAME)
    run(options)


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV_CAT")
