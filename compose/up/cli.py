"""The command line of `tailsrv-up`."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NoReturn

import click

from collator.cli import sync_option
from compose.up.options import DAEMONS, Options
from compose.up.passed_options import passed_arguments, passed_options
from tailsrv_formats.errors import UsageError
from tailsrv_runtime import logs
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.command import run_command
from tailsrv_runtime.daemon import check_descriptor
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.listeners import bind
from tailsrv_runtime.option_types import DESCRIPTOR, ListenAddress, WholeNumber
from tailsrv_runtime.options import allow_option, framing_option, log_format_option, log_level_option, version_option


@click.command(
    "tailsrv-up",
    epilog="Options whose help begins with the name of a daemon are passed to this daemon as they are."
    " BYTES take units (64KiB, 10M), DURATIONs too (500ms, 30s, 7d; a bare number is seconds).",
)
@click.argument("file", metavar="FILE")
@click.option(
    "--base-port",
    type=WholeNumber(0, 65532, "PORT"),
    default="4321",
    show_default=True,
    help="Broadcast port; the raw, acknowledged and index ports are the next three (0: any free ports).",
)
@click.option("--host", default="", help="Address or name to listen on (default: all interfaces, IPv4 and IPv6).")
@framing_option
@sync_option
@allow_option
@click.option(
    "--metrics",
    type=ListenAddress(),
    help="HTTP endpoint of the broadcaster; the collator and the indexer use the next two ports. With unix:PATH, each"
    " daemon uses PATH.NAME (default: none).",
)
@log_level_option
@log_format_option
@click.option("--log-file", metavar="PATH", help="File to which the log lines are appended as well (default: none).")
@click.option(
    "--ready-fd",
    type=DESCRIPTOR,
    help="Descriptor that receives one line of JSON with the four addresses once all daemons listen.",
)
@version_option
def command(**values: Any) -> None:  # noqa: ANN401 - click's values
    """Start the broadcaster, the collator and the indexer of the stream FILE, and stop them together.

    FILE is created if it does not exist. If one of the daemons ends by itself, the others are stopped and the exit code
    is 1.
    """
    AllowList(values["allow"])
    passed = passed_arguments(values)
    options = Options(passed=passed, **values)
    if options.metrics is not None and options.metrics.port > 65535 - len(DAEMONS) + 1:
        raise UsageError(
            f"--metrics {options.metrics}: the daemons need this port and the next two; choose a lower one"
        )
    if options.ready_fd is not None:
        check_descriptor(options.ready_fd)
    check_ports(options)
    if logs.has_colours():
        os.environ["FORCE_COLOR"] = "1"  # for the daemons, whose standard error is a pipe
    # Before the fork, so that the daemons share the pages of what it loads.
    log = logs.configure("tailsrv-up", options.log_level, options.log_format)
    from compose.up.children import children_of, start_all  # noqa: PLC0415 - what the daemons share is loaded first,

    children, error = start_all(children_of(options), options.ready_fd)
    from compose.up.launcher import Launcher  # noqa: PLC0415 - and after the fork what the launcher alone needs

    sys.exit(Launcher(options, children, error, log).run())


command.params[-1:-1] = passed_options()  # before --version


def check_ports(options: Options) -> None:
    """Raise `FatalError` if another program has one of the ports: one line, instead of one from each daemon."""
    addresses = [options.address(position) for position in range(4)]
    endpoints = [options.metrics_address(daemon) for daemon in DAEMONS]
    for address in (*addresses, *endpoints):
        if address is None or not address.port:
            continue
        try:
            for listener in bind(address):
                listener.close()
        except FatalError as error:
            if not (isinstance(error.__context__, OSError) and error.__context__.errno == errno.EADDRINUSE):
                raise
            option = "--base-port (0: any free ports)" if address in addresses else "--metrics"
            raise FatalError(
                f"cannot listen on {address}: another program has this port; stop it, or choose another {option}"
            ) from None


def main() -> NoReturn:
    """The console script."""
    run_command(command, "TAILSRV_UP")
