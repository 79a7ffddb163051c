"""Options as environment variables: one for each option of each command, named after the option as users write it.

TAILSRV_CAT_FROM is `tailsrv-cat --from`, whatever the program calls the value inside. A flag takes 1 or 0 (true,
false, yes, no, on, off); a repeatable option takes several values with blanks between them. The command line counts
before the environment.
"""

from __future__ import annotations

import click


def name_variables(command: click.Command, prefix: str) -> None:
    """Give every option of `command` its variable, ``PREFIX_LONG_NAME``, and `--help` its names; and add ``-h``."""
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            parameter.envvar = variable(parameter, prefix)
            parameter.show_envvar = True


def variable(option: click.Option, prefix: str) -> str:
    """The name of the variable of `option`."""
    longest = max(option.opts, key=len)
    return f"{prefix}_{longest.lstrip('-').replace('-', '_').upper()}"
