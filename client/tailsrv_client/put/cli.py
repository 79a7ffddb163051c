"""The command line of `tailsrv-put`."""

from __future__ import annotations

import contextlib
import os
import stat
from functools import partial
from typing import Any, NoReturn

from tailsrv_client.command_line import Command, file_path
from tailsrv_client.common_options import add_common_options, add_framing_option
from tailsrv_client.progress import Progress
from tailsrv_client.protocol.ports import ACKNOWLEDGED, RAW
from tailsrv_client.protocol.servers import parse_addresses
from tailsrv_client.protocol.session import check_name
from tailsrv_client.put.options import Options
from tailsrv_client.standard_error import write_message
from tailsrv_client.terminal import log_to_standard_error, run_command
from tailsrv_formats.errors import UsageError

NAME = "tailsrv-put"

command: Command = Command(
    NAME,
    usage="[OPTIONS] ADDR[,ADDR...] [FILE]",
    description="Send standard input, or FILE, or what is appended to a file, to a collator. ADDR is an acknowledged"
    " port; a host alone means port 4323. With --name or --follow each message is in the stream exactly once; without a"
    " name, messages that were unacknowledged when a connection was lost may be there twice. With --raw, ADDR is a raw"
    " port, by default 4322.",
    arguments=[("ADDR", "addresses", None), ("FILE", "file", "-")],
)
command.option("--name", metavar="NAME", help="Send as this producer: each message once (default: anonymous).")
command.option("--raw", const=True, default=False, help="Send to the raw port, where nothing is acknowledged.")
add_framing_option(command)
command.option(
    "--spool",
    convert=file_path,
    metavar="FILE",
    help="Keep unacknowledged messages in FILE, so that they survive a kill.",
)
command.option(
    "-F",
    "--follow",
    convert=file_path,
    metavar="FILE",
    help="Send FILE as it grows, through rotations; sends each line once.",
)
command.option(
    "--once", const=True, default=False, help="With --follow: exit when everything there is has been acknowledged."
)
command.option(
    "--ignore-rotated",
    const=True,
    default=False,
    help="With --follow: do not send FILE.1 ..., unless they were partly sent.",
)
add_common_options(
    command,
    timeout="Exit 3 after this time without an acknowledgement while something is unacknowledged (default: never).",
    max_message_bytes="1MiB",
)


def run(values: dict[str, Any]) -> None:
    """Check the options, then send. Raises `UsageError`."""
    options = Options(**values)
    check(options)
    log_to_standard_error(NAME)
    on_event = partial(write_message, NAME)
    progress = Progress(forced=options.progress, total=None if options.follow else input_size(options.file))
    if options.follow is not None:
        from tailsrv_client.put.follower import Follower  # noqa: PLC0415 - only --follow needs inotify

        Follower(options, progress, on_event).run()
    else:
        from tailsrv_client.put.sender import send  # noqa: PLC0415 - and only the other modes need this

        send(options, progress, on_event)


def input_size(path: str) -> int | None:
    """How many bytes the input has from here on; None where that is not known: a pipe, or a terminal."""
    with contextlib.suppress(OSError):  # what cannot be opened is reported when it is opened
        status = os.fstat(0) if path == "-" else os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return max(0, status.st_size - (os.lseek(0, 0, os.SEEK_CUR) if path == "-" else 0))
    return None


def check(options: Options) -> None:
    """What is wrong with the command line. Raises `UsageError`."""
    if options.file != "-" and not os.path.exists(options.file):
        raise UsageError(f"FILE {options.file!r} does not exist")
    file_path(options.file)
    parse_addresses(options.addresses, RAW if options.raw else ACKNOWLEDGED)
    if options.raw and (options.name is not None or options.follow is not None or options.spool is not None):
        raise UsageError(
            "--raw cannot be combined with --name, --spool or --follow: a raw port has no names and no acknowledgements"
        )
    if options.name is not None:
        check_name(options.name)
    if options.follow is None:
        if options.once or options.ignore_rotated:
            raise UsageError("--once and --ignore-rotated need --follow FILE")
        if options.spool is not None and not options.name:
            raise UsageError("--spool needs --name NAME: it keeps the unacknowledged messages of one named producer")
    elif options.file != "-" or options.spool is not None:
        raise UsageError(
            "--follow FILE cannot be combined with [FILE] or --spool: FILE is the only input, and serves as the spool"
        )


def main() -> NoReturn:
    """The console script."""
    run_command(command, run)
