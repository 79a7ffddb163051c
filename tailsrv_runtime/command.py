"""A click command as a whole process: one line for every error, and the documented exit codes."""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

import click

from tailsrv_formats.errors import UsageError, reason
from tailsrv_runtime import standard_error
from tailsrv_runtime.environment import name_variables, with_variables
from tailsrv_runtime.errors import FatalError, location
from tailsrv_runtime.shortage import advice, is_shortage

HELP_COLUMNS: Final = 100
"""The widest ``--help``; on a narrower terminal it is as wide as the terminal."""


def run_command(command: click.Command, environment_prefix: str) -> NoReturn:
    """Run `command` and end the process.

    Exit codes: what the command returns; 2 for a wrong command line, 1 for any other error, 130 after Ctrl-C. Every
    option can also be given as a variable: `environment_prefix`, an underscore and the option's long name.
    """
    standard_error.prepare()
    name = command.name or "tailsrv"
    command.context_settings.setdefault("max_content_width", HELP_COLUMNS)
    try:
        name_variables(command, environment_prefix)
        code = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        code = _complain(name, f"{error.format_message()} (see {name} --help)", 2)
    except UsageError as error:
        code = _complain(name, f"{with_variables(command, str(error))} (see {name} --help)", 2)
    except FatalError as error:
        code = _complain(name, str(error), 1)
    except click.Abort:
        code = 130
    except SystemExit as end:
        code = _complain(name, end.code, 1) if isinstance(end.code, str) else end.code
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        what_to_do = f"; {advice(error)}" if is_shortage(error) else ""
        code = _complain(name, f"{where}{reason(error)} ({location(error)}){what_to_do}", 1)
    except Exception as error:  # noqa: BLE001 - the outermost frame: a bug, too, is one line and not a traceback
        code = _complain(name, f"{error!r} ({location(error)}); this is a bug; please report this line", 1)
    standard_error.writer().flush()
    _flush_output()
    sys.exit(code if isinstance(code, int) else 0)


def _complain(name: str, message: str, code: int) -> int:
    standard_error.say(f"{name}: {' '.join(message.split())}")
    return code


def _flush_output() -> None:
    """Flush standard output now, or redirect it: Python's own flush at exit would print a traceback when it fails."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
