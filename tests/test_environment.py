"""Every option of every command works as an environment variable."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest

import collator.cli
import compose.check
import compose.up.cli
import indexer.cli
import tailsrv.cli
import tailsrv_client.cat.cli
import tailsrv_client.put.cli
from tailsrv.kit.environment import name_variables, variable

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = {
    "TAILSRV": tailsrv.cli.command,
    "TAILSRV_COLLATE": collator.cli.command,
    "TAILSRV_INDEX": indexer.cli.command,
    "TAILSRV_CAT": tailsrv_client.cat.cli.command,
    "TAILSRV_PUT": tailsrv_client.put.cli.command,
    "TAILSRV_UP": compose.up.cli.command,
    "TAILSRV_CHECK": compose.check.command,
}

for prefix, command in COMMANDS.items():
    name_variables(command, prefix)

OPTIONS = [
    (prefix, option)
    for prefix, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_eager
]


def a_value(option: click.Option) -> tuple[str, str]:
    """A value that is valid and no default, as the variable has it and as the command line has it."""
    kind = option.type
    if option.is_flag:
        return "1", ""
    if isinstance(kind, click.Choice):
        other = str(next(choice for choice in reversed(list(kind.choices)) if choice != option.default))
        return other, other
    if isinstance(kind, (click.IntRange, click.types.IntParamType)):
        return "70000" if "bytes" in (option.name or "") else "7", "70000" if "bytes" in (option.name or "") else "7"
    if isinstance(kind, (click.FloatRange, click.types.FloatParamType)):
        return "7.5", "7.5"
    if "ADDR" in (kind.name, option.metavar):
        return "127.0.0.1:7", "127.0.0.1:7"
    return "10.0.0.0/8", "10.0.0.0/8"  # a network, and any text


def parsed(prefix: str, arguments: list[str]) -> dict[str, Any]:
    return COMMANDS[prefix].make_context(prefix, ["x", *arguments]).params


@pytest.mark.parametrize(("prefix", "option"), OPTIONS, ids=[variable(option, prefix) for prefix, option in OPTIONS])
def test_a_variable_says_what_its_option_would_say(
    prefix: str, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_environment, on_command_line = a_value(option)
    longest = max(option.opts, key=len)
    wanted = parsed(prefix, [longest, on_command_line] if on_command_line else [longest])
    monkeypatch.setenv(variable(option, prefix), in_environment)
    found = parsed(prefix, [])
    assert found[option.name or ""] == wanted[option.name or ""]
    monkeypatch.delenv(variable(option, prefix))
    without = parsed(prefix, [])
    # An option that sets what is the default anyway (--raw of tailsrv-cat) can't be told by its value.
    assert found != without or wanted == without


@pytest.mark.parametrize("prefix", list(COMMANDS))
def test_help_names_every_variable(prefix: str) -> None:
    command = COMMANDS[prefix]
    shown = "".join(command.get_help(click.Context(command, info_name=command.name)).split())
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_eager:
            assert variable(option, prefix) in shown


@pytest.mark.parametrize("prefix", list(COMMANDS))
def test_h_is_help(prefix: str) -> None:
    module = COMMANDS[prefix].callback.__module__
    ended = subprocess.run([sys.executable, "-m", module, "-h"], capture_output=True, text=True, check=False)
    if not ended.stdout:  # the module only defines the command; its package runs it
        ended = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = ['x', '-h']; import {module} as m; m.main()"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: ")


def test_a_repeatable_option_takes_several_values_with_blanks_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSRV_ALLOW", "loopback 10.0.0.0/8")
    assert parsed("TAILSRV", [])["allow"] == ("loopback", "10.0.0.0/8")


def test_the_command_line_counts_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSRV_CAT_FROM", "end")
    assert parsed("TAILSRV_CAT", ["--from", "-8"])["start"] == "-8"


def test_a_bad_value_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tailsrv", str(tmp_path / "log")],
        env={"TAILSRV_PORT": "many", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "TAILSRV_PORT" in ended.stderr
