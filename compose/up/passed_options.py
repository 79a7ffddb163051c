"""The daemons' own options as options of `tailsrv-up`, which passes them on.

They are read from the daemons' commands: a new option of a daemon is an option of `tailsrv-up` at once. An option of
several daemons (--poll) is passed to all of them. Only options that are given are passed; each daemon has its defaults.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import click

import collator.cli
import indexer.cli
import tailsrv.cli
from compose.up.options import COLLATE, INDEX, TAILSRV

COMMANDS: Final = {TAILSRV: tailsrv.cli.command, COLLATE: collator.cli.command, INDEX: indexer.cli.command}

OWN: Final = frozenset(
    {
        "port",
        "listen",
        "ack_port",
        "ack_listen",
        "framing",
        "sync",
        "allow",
        "metrics",
        "log_level",
        "log_format",
        "ready_fd",
    }
)
"""What `tailsrv-up` sets itself, from options of its own."""


class Checked(click.ParamType[str]):
    """A value of another type, as it was written: the daemon that gets it parses it once more."""

    def __init__(self, checker: click.ParamType[Any]) -> None:
        self.name = checker.name
        self.checker = checker

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's signature
        """Check the value. Raises `click.BadParameter`."""
        self.checker.convert(value, param, ctx)
        return str(value)


class PassedOption(click.Option):
    """An option of one or several daemons."""

    def __init__(self, daemons: dict[str, click.Option]) -> None:
        """`daemons`: those that have the option, each with its own definition of it."""
        first = next(iter(daemons.values()))
        helps: dict[str, list[str]] = {}
        for daemon, option in daemons.items():
            helps.setdefault(option.help or "", []).append(daemon)
        super().__init__(
            [*first.opts],
            type=None if first.is_flag else Checked(first.type),
            is_flag=first.is_flag,
            metavar=first.metavar,
            help=" ".join(f"{', '.join(names)}: {text}" for text, names in helps.items()),
        )
        self._daemons = daemons

    def arguments(self, value: Any) -> dict[str, tuple[str, ...]]:  # noqa: ANN401 - what click made of it
        """What each daemon gets for `value`."""
        name = max(self.opts, key=len)
        if value is None or value is False:
            return {}
        return dict.fromkeys(self._daemons, (name,) if self.is_flag else (name, str(value)))

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """With the daemons' defaults, which are none of `tailsrv-up`."""
        extra = super().get_help_extra(ctx)
        defaults = {
            daemon: option.default for daemon, option in self._daemons.items() if isinstance(option.default, str)
        }
        if len(set(defaults.values())) == 1:
            extra["default"] = next(iter(defaults.values()))
        elif defaults:
            extra["default"] = ", ".join(f"{default} ({daemon})" for daemon, default in defaults.items())
        return extra


@functools.cache
def passed_options() -> tuple[PassedOption, ...]:
    """All of them, in the order of the daemons' help."""
    found: dict[str, dict[str, click.Option]] = {}
    for daemon, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_eager and option.name not in OWN:
                found.setdefault(option.name or "", {})[daemon] = option
    return tuple(PassedOption(daemons) for daemons in found.values())


def passed_arguments(values: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Remove the values of these options from click's `values`; return what each daemon gets on its command line."""
    arguments: dict[str, tuple[str, ...]] = {}
    for option in passed_options():
        for daemon, words in option.arguments(values.pop(option.name or "")).items():
            arguments[daemon] = (*arguments.get(daemon, ()), *words)
    return arguments
