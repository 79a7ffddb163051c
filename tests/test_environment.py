"""Every option of every command works as an environment variable."""

from __future__ import annotations

import os
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
from tailsrv_runtime.environment import name_variables, variable

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


def a_value(option: click.Option) -> str:
    """A value that is valid and no default; of a flag, what its variable says."""
    kind = option.type
    if option.is_flag:
        return "1"
    if isinstance(kind, click.Choice):
        return str(next(choice for choice in reversed(list(kind.choices)) if choice != option.default))
    if isinstance(kind, (click.IntRange, click.types.IntParamType)):
        return "70000" if "bytes" in (option.name or "") else "7"
    if isinstance(kind, click.FloatRange) or option.metavar == "SECONDS":
        return "7.5"
    if "ADDR" in (kind.name, option.metavar):
        return "127.0.0.1:7"
    return "10.0.0.0/8"  # a network, and any text


def parsed(prefix: str, arguments: list[str]) -> dict[str, Any]:
    return COMMANDS[prefix].make_context(prefix, ["x", *arguments]).params


@pytest.mark.parametrize(("prefix", "option"), OPTIONS, ids=[variable(option, prefix) for prefix, option in OPTIONS])
def test_a_variable_says_what_its_option_would_say(
    prefix: str, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(option.opts, key=len)
    wanted = parsed(prefix, [longest] if option.is_flag else [longest, a_value(option)])
    monkeypatch.setenv(variable(option, prefix), a_value(option))
    found = parsed(prefix, [])
    assert found[option.name or ""] == wanted[option.name or ""]
    monkeypatch.delenv(variable(option, prefix))
    without = parsed(prefix, [])
    # An option that sets what is the default anyway (--raw of tailsrv-cat) can't be told by its value.
    assert found != without or wanted == without


FLAGS = [(prefix, option) for prefix, option in OPTIONS if option.is_flag]


@pytest.mark.parametrize(("prefix", "option"), FLAGS, ids=[variable(option, prefix) for prefix, option in FLAGS])
def test_a_flags_variable_takes_yes_and_no_and_nothing_else(
    prefix: str, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, given = parsed(prefix, []), parsed(prefix, [max(option.opts, key=len)])
    for wanted, texts in ((given, ("1", "true", "YES", "on")), (without, ("0", "false", "No", "off", ""))):
        for text in texts:
            monkeypatch.setenv(variable(option, prefix), text)
            assert parsed(prefix, []) == wanted
    for text in ("maybe", "2", "-1"):
        monkeypatch.setenv(variable(option, prefix), text)
        with pytest.raises(click.BadParameter) as raised:
            parsed(prefix, [])
        assert variable(option, prefix) in raised.value.format_message()


CHECKED = [
    (prefix, option)
    for prefix, option in OPTIONS
    if not option.is_flag
    and (option.metavar == "SECONDS" or not isinstance(option.type, (click.types.StringParamType, click.Path)))
]


@pytest.mark.parametrize(("prefix", "option"), CHECKED, ids=[variable(option, prefix) for prefix, option in CHECKED])
def test_a_value_that_is_none_is_an_error_that_names_the_variable(
    prefix: str, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_time = option.metavar == "SECONDS"
    for text in ("neither", "-5", *(("nan", "inf", "-inf", "1e999") if is_time else ())):
        monkeypatch.setenv(variable(option, prefix), text)
        with pytest.raises(click.BadParameter) as raised:
            parsed(prefix, [])
        assert variable(option, prefix) in raised.value.format_message()


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


WRONG = [
    ("TAILSRV", "PORT", "many"),
    ("TAILSRV", "ALLOW", "loopback 10.0.0.0/33"),
    ("TAILSRV", "READY_FD", "77"),
    ("TAILSRV_COLLATE", "BUFFER_BYTES", "1"),
    ("TAILSRV_COLLATE", "SYNC", "sometimes"),
    ("TAILSRV_INDEX", "LISTEN", "127.0.0.1:0 nowhere"),
    ("TAILSRV_CAT", "JSON", "perhaps"),
    ("TAILSRV_CAT", "FROM", "yesterday"),
    ("TAILSRV_CAT", "UNTIL", "tomorrow"),
    ("TAILSRV_PUT", "FRAMING", "xml"),
    ("TAILSRV_PUT", "NAME", "two words"),
    ("TAILSRV_UP", "BASE_PORT", "65535"),
    ("TAILSRV_UP", "ALLOW", "10.0.0.1/8"),
    ("TAILSRV_CHECK", "FRAMING", "xml"),
]


@pytest.mark.parametrize(
    ("prefix", "option", "value"), WRONG, ids=[f"{prefix}_{option}" for prefix, option, _ in WRONG]
)
def test_a_bad_value_is_one_line_that_names_the_variable(prefix: str, option: str, value: str, tmp_path: Path) -> None:
    module = COMMANDS[prefix].callback.__module__
    arguments = ["127.0.0.1:1"] if prefix in {"TAILSRV_CAT", "TAILSRV_PUT"} else [str(tmp_path / "log")]
    if prefix in {"TAILSRV", "TAILSRV_COLLATE", "TAILSRV_INDEX"}:
        arguments += ["--listen", "127.0.0.1:0"] if option != "LISTEN" else []
    ended = subprocess.run(
        [sys.executable, "-c", f"import {module} as m; m.main()", *arguments],
        env={f"{prefix}_{option}": value, "PATH": "/usr/bin:/bin", "PYTHONPATH": os.getcwd()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"{prefix}_{option}" in ended.stderr
    assert ended.stderr.count(f"{prefix}_") == 1


def test_a_variable_that_is_not_to_blame_is_not_named(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "collator", str(tmp_path / "log"), "-p", "0", "--sync", "sometimes"],
        env={"TAILSRV_COLLATE_FRAMING": "nul", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--sync sometimes" in ended.stderr
    assert "TAILSRV_COLLATE_" not in ended.stderr
