"""The command line of `tailsrv-check`."""

from __future__ import annotations

import os
from typing import NoReturn

import click

from compose.inspection import LONGEST_MESSAGE, check
from tailsrv_formats.framing import FRAMINGS
from tailsrv_formats.quantities import format_size
from tailsrv_runtime.command import run_command
from tailsrv_runtime.option_types import Size
from tailsrv_runtime.options import version_option


@click.command("tailsrv-check", epilog="BYTES take units: 64KiB, 10M, 1GiB.")
@click.argument("file", metavar="FILE", type=click.Path(readable=False))  # `check` reports what it is
@click.option(
    "--framing",
    type=click.Choice(FRAMINGS),
    help="How messages are delimited (default: as the journal records it, or newline).",
)
@click.option(
    "--max-message-bytes",
    type=Size(1, 1 << 40),
    default=format_size(LONGEST_MESSAGE),
    show_default=True,
    help="Largest valid message, including its terminator or prefix; a longer one is a finding.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@version_option
def command(file: str, framing: str | None, max_message_bytes: int, *, as_json: bool) -> int:
    """Check whether FILE and the files beside it agree: journal, commit mark, framing, index. Never writes.

    The exit code is 0 if they agree, and 1 with a line for each finding if not.
    """
    report = check(file, framing=framing, max_message_bytes=max_message_bytes)
    try:
        click.echo(report.json() if as_json else report.text())
    except BrokenPipeError:  # the reader has seen enough; the exit code still tells the result
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
    return 1 if report.findings else 0


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV_CHECK")


if __name__ == "__main__":
    main()
