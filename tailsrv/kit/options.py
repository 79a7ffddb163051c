"""Options that every daemon has, and what is common to their commands.

Each can be given as an environment variable too: the command's name and the option's, TAILSRV_INDEX_LOG_LEVEL.
Repeatable ones take several values there, with blanks between them.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from tailsrv.kit.access import AllowList
from tailsrv.kit.addresses import Address, parse_address
from tailsrv.kit.environment import name_variables
from tailsrv.kit.errors import UsageError
from tailsrv.kit.logs import FORMATS, LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What PROTOCOLS calls addresses, access and lifecycle: the same for all daemons."""

    listen: tuple[Address, ...] = ()
    """Where to listen; empty: on the sockets that systemd hands over."""
    allow: tuple[str, ...] = ("private",)
    metrics: Address | None = None
    log_level: str = "info"
    log_format: str = "auto"
    ready_fd: int | None = None


class Listen(click.ParamType[Address]):
    """An address to listen on."""

    name = "ADDR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:  # noqa: ANN401 - click's signature
        """Parse it; click reports what is wrong with it."""
        try:
            return value if isinstance(value, Address) else parse_address(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


PORT = click.IntRange(0, 65535)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command the options of `CommonOptions`."""
    for option in reversed(
        (
            click.option("-p", "--port", type=PORT, help="Listen on all interfaces on this port (0: any free one)."),
            click.option("--listen", type=Listen(), multiple=True, help="HOST:PORT, [V6]:PORT, :PORT or unix:PATH."),
            click.option(
                "--allow",
                metavar="CIDR",
                multiple=True,
                default=("private",),
                help="Peers that may connect: a network, private (the default), loopback or any.",
            ),
            click.option("--metrics", type=Listen(), help="Serve /metrics and /healthz there, by HTTP."),
            click.option("--log-level", type=click.Choice(list(LEVELS)), default="info", show_default=True),
            click.option("--log-format", type=click.Choice(FORMATS), default="auto", show_default=True),
            click.option(
                "--ready-fd", type=click.IntRange(min=0), metavar="N", help="Write one line of JSON to N when ready."
            ),
            click.version_option(version("tailsrv"), message="%(prog)s %(version)s"),
        )
    ):
        command = option(command)
    return command


def addresses(port: int | None, listen: tuple[Address, ...]) -> tuple[Address, ...]:
    """What `--port` and `--listen` (or another lane's pair) say together."""
    return listen if port is None else (Address(port=port), *listen)


def common_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Turn click's values into the fields of an options struct: `port` and `listen` become addresses.

    Raises `UsageError` for networks that are none, before anything else happens.
    """
    AllowList(values["allow"])
    listen = addresses(values.pop("port"), values["listen"])
    return {**values, "listen": listen}


def run_command(command: click.Command, environment_prefix: str) -> NoReturn:
    """Run a click command as the whole process: whatever is wrong is said in one line; exit codes as documented."""
    name = command.name or "tailsrv"
    try:
        name_variables(command, environment_prefix)
        code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        _complain(name, error.format_message())
    except UsageError as error:
        _complain(name, str(error))
    except click.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _complain(name: str, message: str) -> NoReturn:
    message = " ".join(message.split())
    print(f"{name}: {message} (see {name} --help)", file=sys.stderr)  # noqa: T201 - no logger yet: it has options too
    sys.exit(2)
