"""Options as environment variables: one per option of a command, named after the option as users write it.

TAILSRV_INDEX_LOG_LEVEL is `tailsrv-index --log-level`. A flag takes 1 or 0 (true, false, yes, no, on, off); a
repeatable option takes several values with blanks between them. The command line takes precedence.
"""

from __future__ import annotations

import os
import sys

import click
from click.core import ParameterSource


def name_variables(command: click.Command, prefix: str) -> None:
    """Set the variable of every option of `command`, ``PREFIX_LONG_NAME``, which `--help` shows; and add ``-h``."""
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            parameter.envvar = variable(parameter, prefix)
            parameter.show_envvar = True


def with_variables(command: click.Command, message: str) -> str:
    """An error about the command line, with the names of the variables that the invalid value came from.

    click's own errors contain them already. Our errors name the option, or quote the value: that is how it is found.
    """
    context = command.make_context(command.name, sys.argv[1:], resilient_parsing=True)
    words = {word.strip(":;,") for word in message.split()}
    sources = []
    for parameter in command.params:
        name = parameter.envvar
        if not isinstance(parameter, click.Option) or not isinstance(name, str) or name in message:
            continue
        is_named = max(parameter.opts, key=len) in words or repr(os.environ.get(name)) in message
        if is_named and context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT:
            sources.append(name)
    return f"{message} (env var: {', '.join(sources)})" if sources else message


def variable(option: click.Option, prefix: str) -> str:
    """The name of the variable of `option`."""
    longest = max(option.opts, key=len)
    return f"{prefix}_{longest.lstrip('-').replace('-', '_').upper()}"
