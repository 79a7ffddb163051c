"""The command line of `tailsrv-cat`."""

from __future__ import annotations

from typing import Any, NoReturn

from tailsrv_client.cat.copier import copy_stream
from tailsrv_client.cat.options import Options
from tailsrv_client.command_line import Command, at_least, file_path
from tailsrv_client.common_options import add_common_options, add_framing_option
from tailsrv_client.protocol.bounds import parse_start, parse_until
from tailsrv_client.protocol.ports import BROADCAST, INDEX
from tailsrv_client.protocol.servers import parse_addresses
from tailsrv_client.terminal import log_to_standard_error, run_command

NAME = "tailsrv-cat"

command: Command = Command(
    NAME,
    usage="[OPTIONS] ADDR[,ADDR...]",
    description="Copy a stream to standard output, and follow it as it grows. ADDR is a broadcaster; a host alone means"
    " port 4321 (--index: 4324). It reconnects at the byte where it was, at the next ADDR when one is down.",
    arguments=[("ADDR", "addresses", None)],
)
command.option("--index", metavar="ADDR", help="The stream's indexer: for message:N, last:N, time:T, %n, %t and --lag.")
command.option(
    "-o",
    "--from",
    dest="start",
    default="start",
    metavar="PLACE",
    help="Where to begin: start, end, BYTE, -BYTES, message:N, last:N or time:T (such as time:-1h).",
)
command.option(
    "--until",
    metavar="PLACE",
    help="Stop before now, BYTE, message:N or time:T, or after count:N (default: follow as it grows).",
)
command.option("-e", "--until-now", dest="until", const="now", help="Short for --until now.")
command.option(
    "-c", "--count", convert=at_least(0), metavar="N", help="Stop after N messages (with --grep: after N matches)."
)
add_framing_option(command)
command.option("--raw", dest="form", const="raw", default="raw", help="Print the bytes of the stream (the default).")
command.option(
    "-J",
    "--json",
    dest="form",
    const="json",
    default="raw",
    help="Print a JSON object a line per message, and with --lag per report.",
)
command.option(
    "-f", "--format", dest="template", metavar="TEXT", help=r"Print this per message: %s %n %o %e %S %t, as '%n %s\n'."
)
command.option(
    "--checkpoint",
    convert=file_path,
    metavar="FILE",
    help="Continue from the position in FILE, and keep FILE up to date.",
)
command.option("--grep", metavar="REGEX", help="Print only messages that match.")
command.option("--lag", const=True, default=False, help="Print the lag to standard error once a second.")
add_common_options(
    command,
    timeout="Exit 3 after this time without a working connection (default: never); an idle stream is not an outage.",
    max_message_bytes="64MiB",
)


def run(values: dict[str, Any]) -> None:
    """Check the options, then copy. Raises `UsageError`."""
    if values["template"] is not None:
        values["form"] = "format"
    options = Options(**{name: value for name, value in values.items() if value is not None})
    parse_addresses(options.addresses, BROADCAST)
    if options.index is not None:
        parse_addresses(options.index, INDEX)
    parse_start(options.start)
    parse_until(options.until)
    log_to_standard_error(NAME)
    copy_stream(options)


def main() -> NoReturn:
    """The console script."""
    run_command(command, run)
