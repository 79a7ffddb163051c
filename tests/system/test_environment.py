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
from compose.up.passed_options import Checked
from tailsrv_client.cat import cli as cat
from tailsrv_client.put import cli as put
from tailsrv_formats.errors import UsageError
from tailsrv_runtime.environment import name_variables, variable
from tailsrv_runtime.option_types import Duration, ListenAddress, Size, WholeNumber

if TYPE_CHECKING:
    from pathlib import Path

    from tailsrv_client.command_line import Command, Option

COMMANDS = {
    "TAILSRV": tailsrv.cli.command,
    "TAILSRV_COLLATE": collator.cli.command,
    "TAILSRV_INDEX": indexer.cli.command,
    "TAILSRV_UP": compose.up.cli.command,
    "TAILSRV_CHECK": compose.check.command,
}

# The clients' commands need no click: see the end of this page.
CLIENTS = {"TAILSRV_CAT": cat.command, "TAILSRV_PUT": put.command}

for prefix, command in COMMANDS.items():
    name_variables(command, prefix)

OPTIONS = [
    (prefix, option)
    for prefix, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_eager
]


def type_of(option: click.Option) -> click.ParamType[Any]:
    """The type of its values; of an option that tailsrv-up passes on, what the daemon makes of them."""
    return option.type.checker if isinstance(option.type, Checked) else option.type


def a_value(option: click.Option) -> str:
    """A value that is valid and no default; of a flag, what its variable says."""
    kind = type_of(option)
    if option.is_flag:
        return "1"
    if isinstance(kind, click.Choice):
        return str(next(choice for choice in reversed(list(kind.choices)) if choice != option.default))
    values = {WholeNumber: "7", Size: "70KiB", Duration: "7.5s", ListenAddress: "127.0.0.1:7"}
    return values.get(type(kind), "10.0.0.0/8")  # a network, and any text


def parsed(prefix: str, arguments: list[str]) -> dict[str, Any]:
    return COMMANDS[prefix].make_context(prefix, ["x", *arguments]).params


@pytest.mark.parametrize(("prefix", "option"), OPTIONS, ids=[variable(option, prefix) for prefix, option in OPTIONS])
def test_a_variable_sets_what_its_option_sets(
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
    if not option.is_flag and not isinstance(type_of(option), (click.types.StringParamType, click.Path))
]


@pytest.mark.parametrize(("prefix", "option"), CHECKED, ids=[variable(option, prefix) for prefix, option in CHECKED])
def test_an_invalid_value_is_an_error_that_names_the_variable(
    prefix: str, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("neither", "-5", "nan", "inf", "-inf", "1e999"):
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
def test_help_shows_defaults_as_an_operator_writes_them(prefix: str) -> None:
    """No ranges in a notation of their own, no 268435456; every option has a help text; the lines fit 80 columns."""
    command = COMMANDS[prefix]
    text = command.get_help(command.make_context(command.name, [], resilient_parsing=True))
    lines = text.splitlines()
    shown = "".join(" ".join(lines).split())
    assert "<=x" not in shown
    assert "RANGE" not in shown
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help
            if isinstance(option.default, str) and option.default:
                assert f"default:{option.default}]" in shown
    assert max(map(len, lines)) <= 80
    listed = text.partition("Options:\n")[2].partition("\n\n")[0].splitlines()
    *_, before_last, last = (line for line in listed if line.startswith("  -"))
    assert "--version" in before_last
    assert "--help" in last


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
    module = (
        {"TAILSRV_CAT": cat, "TAILSRV_PUT": put}[prefix].__name__
        if prefix in CLIENTS
        else COMMANDS[prefix].callback.__module__
    )
    arguments = ["127.0.0.1:1"] if prefix in {"TAILSRV_CAT", "TAILSRV_PUT"} else [str(tmp_path / "log")]
    if prefix in {"TAILSRV", "TAILSRV_COLLATE", "TAILSRV_INDEX"}:
        arguments += ["--listen", "127.0.0.1:0"] if option != "LISTEN" else []
    ended = subprocess.run(
        [sys.executable, "-c", f"import {module} as m; m.main()", *arguments],
        env={f"{prefix}_{option}": value, "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{os.getcwd()}:{os.getcwd()}/client"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"{prefix}_{option}" in ended.stderr
    assert ended.stderr.count(f"{prefix}_") == 1


def test_a_variable_that_is_valid_is_not_named_in_an_error(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "collator", str(tmp_path / "log"), "-p", "0", "--sync", "sometimes"],
        env={
            "TAILSRV_COLLATE_FRAMING": "nul",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{os.getcwd()}:{os.getcwd()}/client",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--sync sometimes" in ended.stderr
    assert "TAILSRV_COLLATE_" not in ended.stderr


# --- the clients' commands


CLIENT_OPTIONS = [(command, option) for command in CLIENTS.values() for option in command.options]
EACH_CLIENT_OPTION = pytest.mark.parametrize(
    ("command", "option"), CLIENT_OPTIONS, ids=[option.variable(command.prefix) for command, option in CLIENT_OPTIONS]
)


def a_clients_value(option: Option) -> str:
    """A value that is valid and no default; of a flag, what its variable says."""
    if option.const is not None:
        return "1"
    if option.choices:
        return option.choices[-1]
    return {"N": "7", "BYTES": "70KiB", "DURATION": "7.5s"}.get(option.metavar or "", "some text")


@EACH_CLIENT_OPTION
def test_a_clients_variable_sets_what_its_option_sets(command: Command, option: Option) -> None:
    value = a_clients_value(option)
    for name in option.names:
        wanted = command.parse(["h", name] if option.const is not None else ["h", name, value], {})
        assert command.parse(["h"], {option.variable(command.prefix): value}) == wanted
        # An option that sets what is the default anyway (--raw of tailsrv-cat) can't be told by its value.
        assert wanted != command.parse(["h"], {}) or option.const == option.default


@EACH_CLIENT_OPTION
def test_a_clients_flag_takes_yes_and_no_and_nothing_else(command: Command, option: Option) -> None:
    if option.const is None:
        return
    variable = option.variable(command.prefix)
    without, given = command.parse(["h"], {}), command.parse(["h", option.long], {})
    for wanted, texts in ((given, ("1", "true", "YES", "on")), (without, ("0", "false", "No", "off", ""))):
        for text in texts:
            assert command.parse(["h"], {variable: text}) == wanted
    for text in ("maybe", "2", "-1"):
        with pytest.raises(UsageError, match=variable):
            command.parse(["h"], {variable: text})


@EACH_CLIENT_OPTION
def test_a_clients_invalid_value_is_an_error_that_names_the_option_or_the_variable(
    command: Command, option: Option
) -> None:
    if not option.choices and option.metavar not in {"N", "BYTES", "DURATION"}:
        return
    variable = option.variable(command.prefix)
    for text in ("neither", "-5", "nan", "inf", "1e999"):
        with pytest.raises(UsageError, match=variable):
            command.parse(["h"], {variable: text})
        with pytest.raises(UsageError, match=option.long):
            command.parse(["h", option.long, text], {})
        with pytest.raises(UsageError, match=option.long):
            command.parse(["h", f"{option.long}={text}"], {})


@pytest.mark.parametrize("command", CLIENTS.values(), ids=CLIENTS)
def test_a_clients_help_names_every_option_variable_and_default(command: Command) -> None:
    shown = "".join(command.help().split())
    for option in command.options:
        assert all(name in shown for name in option.names)
        assert option.variable(command.prefix) in shown
        if option.const is None and option.default is not None:
            assert f"default:{option.default}" in shown
    assert max(map(len, command.help().splitlines())) <= 80
    for name in ("-h", "--help"):
        ended = subprocess.run(
            [sys.executable, "-m", f"tailsrv_client.{command.name[8:]}", name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout.split(":")[0]) == (0, "Usage")


def test_the_command_line_counts_before_the_environment() -> None:
    environment = {"TAILSRV_CAT_FROM": "end", "TAILSRV_CAT_COUNT": "nonsense"}
    values = cat.command.parse(["h", "--from", "-8", "-c", "2"], environment)
    assert (values["start"], values["count"]) == ("-8", 2)


def test_values_that_begin_with_a_dash_are_values() -> None:
    values = cat.command.parse(["--grep", "-x", "-f", "-%n", "--", "-odd-host"], {})
    assert (values["grep"], values["template"], values["addresses"]) == ("-x", "-%n", "-odd-host")
    assert put.command.parse(["h", "-"], {})["file"] == "-"


@pytest.mark.parametrize(
    "arguments",
    [
        ["h", "f", "--name", "a", "--raw"],
        ["h", "--name", "a", "--raw", "f"],
        ["--raw", "h", "--name=a", "f"],
        ["--name", "a", "--raw", "--", "h", "f"],
        ["h", "--name", "a", "--raw", "--", "f"],
    ],
)
def test_options_may_be_anywhere_among_the_arguments(arguments: list[str]) -> None:
    values = put.command.parse(arguments, {})
    assert (values["addresses"], values["file"], values["name"], values["raw"]) == ("h", "f", "a", True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "ADDR"),
        (["h", "--lag=yes"], "--lag"),
        (["h", "--count"], "--count"),
        (["h", "--bogus"], "--bogus"),
        (["h", "--coun", "1"], "--coun"),
        (["h", "more"], "more"),
    ],
)
def test_a_wrong_command_line_is_an_error_that_states_the_reason(arguments: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        cat.command.parse(arguments, {})
