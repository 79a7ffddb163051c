"""Options that every daemon has, and what is common to their commands.

Each can be given as an environment variable too: the command's name and the option's, TAILSRV_INDEX_LOG_LEVEL.
Repeatable ones take several values there, with blanks between them.
"""

from __future__ import annotations

import math
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from tailsrv_formats.addresses import Address, parse_address
from tailsrv_formats.errors import UsageError, reason
from tailsrv_runtime import standard_error
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.environment import name_variables, with_variables
from tailsrv_runtime.errors import FatalError, location
from tailsrv_runtime.logs import FORMATS, LEVELS

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


class Seconds(click.FloatRange):
    """A time in seconds: what a clock can show."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's signature
        """Parse it; click reports what is wrong with it."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


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
    standard_error.prepare()
    name = command.name or "tailsrv"
    try:
        name_variables(command, environment_prefix)
        code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        code = _complain(name, f"{error.format_message()} (see {name} --help)", 2)
    except UsageError as error:
        code = _complain(name, f"{with_variables(command, str(error))} (see {name} --help)", 2)
    except FatalError as error:
        code = _complain(name, str(error), 1)
    except click.Abort:
        code = 130
    except SystemExit as end:
        code = end.code
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        code = _complain(name, f"{where}{reason(error)} ({location(error)})", 1)
    except Exception as error:  # noqa: BLE001 - the outermost frame: one line here, too
        code = _complain(name, f"{error!r} ({location(error)}); this is a bug; please report this line", 1)
    standard_error.writer().flush()
    _flush_output()
    sys.exit(code if isinstance(code, int) else 0)


def _complain(name: str, message: str, code: int) -> int:
    standard_error.say(f"{name}: {' '.join(message.split())}")
    return code


def _flush_output() -> None:
    """Let Python's own flush at the exit, whose failure would be a traceback, find nothing to do or somewhere to go."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
