"""Options as environment variables: one for each option of each command, named after the option as users write it.

TAILSRV_CAT_FROM is `tailsrv-cat --from`, whatever the program calls the value inside. A flag takes 1 or 0 (true,
false, yes, no, on, off); a repeatable option takes several values with blanks between them. The command line counts
before the environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.core import ParameterSource


def name_variables(command: click.Command, prefix: str) -> None:
    """Give every option of `command` its variable, ``PREFIX_LONG_NAME``, and `--help` its names; and add ``-h``."""
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            parameter.envvar = variable(parameter, prefix)
            parameter.show_envvar = True


def with_variables(command: click.Command, message: str) -> str:
    """An error about a command line, with the variables that said what it complains of.

    click's own errors name them already. Others name the option, or quote the value.
    """
    context = command.make_context(command.name, sys.argv[1:], resilient_parsing=True)
    words = {word.strip(":;,") for word in message.split()}
    blamed = []
    for parameter in command.params:
        name = parameter.envvar
        if not isinstance(parameter, click.Option) or not isinstance(name, str) or name in message:
            continue
        is_named = max(parameter.opts, key=len) in words or repr(os.environ.get(name)) in message
        if is_named and context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT:
            blamed.append(name)
    return f"{message} (env var: {', '.join(blamed)})" if blamed else message


class ValueFlag(click.Option):
    """One of several flags that set the same value: ``--raw`` and ``--json``. Give it to `click.option` as `cls`.

    click takes what such a flag's variable says for the value itself, or ignores it.
    """

    def value_from_envvar(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """The flag's value when its variable says yes, nothing when it says no. Raises `click.BadParameter`."""
        text = self.resolve_envvar_value(ctx)
        try:
            return self.flag_value if text is not None and click.BOOL.convert(text, self, ctx) else None
        except click.BadParameter:
            if ctx.resilient_parsing:
                return None
            raise


def variable(option: click.Option, prefix: str) -> str:
    """The name of the variable of `option`."""
    longest = max(option.opts, key=len)
    return f"{prefix}_{longest.lstrip('-').replace('-', '_').upper()}"
