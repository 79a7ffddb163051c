"""The options that every daemon has: addresses, access, metrics, logs and readiness."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tailsrv_formats.addresses import Address
from tailsrv_formats.framing import FRAMINGS
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.logs import FORMATS, LEVELS
from tailsrv_runtime.option_types import DESCRIPTOR, PORT, Duration, ListenAddress

if TYPE_CHECKING:
    from collections.abc import Callable


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that all daemons share. Each daemon's own `Options` extend them."""

    listen: tuple[Address, ...] = ()
    """The addresses to listen on; empty: the sockets that systemd hands over."""
    allow: tuple[str, ...] = ("private",)
    """The networks whose peers may connect, as `AllowList` reads them."""
    metrics: Address | None = None
    """The address of the HTTP endpoint; None: there is none."""
    log_level: str = "info"
    """One of `logs.LEVELS`."""
    log_format: str = "auto"
    """One of `logs.FORMATS`."""
    ready_fd: int | None = None
    """The descriptor that receives one line of JSON once the daemon listens."""


version_option = click.version_option(
    version("tailsrv"), message="%(prog)s %(version)s", help="Show the version and exit."
)

framing_option = click.option(
    "--framing",
    type=click.Choice(FRAMINGS),
    default=FRAMINGS[0],
    show_default=True,
    help="How messages are delimited: by a terminator or by a length prefix.",
)

poll_option = click.option(
    "--poll",
    type=Duration(),
    help="Interval at which FILE is polled, for file systems without inotify events (default: off).",
)

allow_option = click.option(
    "--allow",
    metavar="CIDR",
    multiple=True,
    default=("private",),
    show_default=True,
    help="Networks whose peers may connect (repeatable): CIDR notation, private, loopback or any.",
)

log_level_option = click.option(
    "--log-level",
    type=click.Choice(list(LEVELS)),
    default="info",
    show_default=True,
    help="Least severe level that is logged.",
)

log_format_option = click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="Form of the log on standard error; auto: console on a terminal, JSON lines otherwise.",
)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `CommonOptions` to a click command. As the innermost decorator: `--help` lists them last."""
    decorators = (
        click.option(
            "-p", "--port", type=PORT, help="Port to listen on, on all interfaces, IPv4 and IPv6 (0: any free)."
        ),
        click.option(
            "--listen",
            type=ListenAddress(),
            multiple=True,
            help="Address to listen on (repeatable): HOST:PORT, [V6]:PORT, :PORT or unix:PATH.",
        ),
        allow_option,
        click.option(
            "--metrics",
            type=ListenAddress(),
            help="Address that serves /metrics and /healthz over HTTP (default: none).",
        ),
        log_level_option,
        log_format_option,
        click.option(
            "--ready-fd",
            type=DESCRIPTOR,
            help="Descriptor that receives one line of JSON with the bound addresses once the daemon listens.",
        ),
        version_option,
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def listen_addresses(port: int | None, listen: tuple[Address, ...]) -> tuple[Address, ...]:
    """The addresses that `--port` and `--listen` (or another pair of this kind) name together."""
    return listen if port is None else (Address(port=port), *listen)


def common_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Turn click's values into the fields of an options struct: `port` and `listen` become addresses.

    Raises `UsageError` for an invalid network, before the daemon does anything else.
    """
    AllowList(values["allow"])
    listen = listen_addresses(values.pop("port"), values["listen"])
    return {**values, "listen": listen}
