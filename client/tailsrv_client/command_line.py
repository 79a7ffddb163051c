"""Command lines of the clients: argparse, and every option as an environment variable, too.

TAILSRV_CAT_FROM is `tailsrv-cat --from`. A flag's variable says 1 or 0 (true, false, yes, no, on, off). The command
line counts before the environment. An invalid value raises a
`UsageError` that names the option, and the variable if the value came from one.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tailsrv_formats.errors import UsageError
from tailsrv_formats.quantities import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LARGEST_DIGITS: Final = 19
"""Of a whole number: below 2**63 all but the very largest."""

YES: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
NO: Final = frozenset({"0", "false", "f", "no", "n", "off", ""})


class Option:
    """One option: how it is written, what it sets, and what it may be."""

    def __init__(
        self,
        *names: str,
        help: str,  # noqa: A002 - argparse's word
        dest: str | None = None,
        const: object = None,
        default: object = None,
        convert: Callable[[str], object] | None = None,
        choices: Sequence[str] = (),
        metavar: str | None = None,
    ) -> None:
        """`const`: it is a flag that sets this; otherwise it has a value, which `convert` makes of its text."""
        self.names = names
        self.long: str = max(names, key=len)
        self.dest: str = dest or self.long.lstrip("-").replace("-", "_")
        self.help = help
        self.const = const
        self.default = default
        self.convert = convert
        self.choices: tuple[str, ...] = tuple(choices)
        self.metavar = metavar

    def variable(self, prefix: str) -> str:
        """The name of its environment variable."""
        return f"{prefix}_{self.long.lstrip('-').replace('-', '_').upper()}"

    def value(self, text: str) -> object:
        """What `text` means. Raises `UsageError`."""
        if self.choices and text not in self.choices:
            raise UsageError(f"{text!r} is not one of {', '.join(self.choices)}")
        return text if self.convert is None else self.convert(text)

    def shown(self, prefix: str) -> str:
        """Its text in ``--help``."""
        facts = [f"env var: {self.variable(prefix)}"]
        if self.default is not None and self.const is None:
            facts.append(f"default: {self.default}")
        return f"{self.help}  [{'; '.join(facts)}]".replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """Raises where argparse's own exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class _Formatter(argparse.HelpFormatter):
    """As wide as the terminal, up to 100 columns; "Usage" as the other commands write it."""

    def __init__(self, prog: str) -> None:
        import shutil  # noqa: PLC0415 - for --help alone

        super().__init__(prog, max_help_position=26, width=min(100, shutil.get_terminal_size().columns) - 2)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:  # noqa: ANN401 - argparse's signature
        super().add_usage(usage, actions, groups, prefix or "Usage: ")


class Command:
    """A command: its arguments, its options, and how it is called."""

    def __init__(
        self,
        name: str,
        *,
        usage: str,
        description: str,
        arguments: Sequence[tuple[str, str, str | None]],
        epilog: str = "",
    ) -> None:
        """`arguments`: of each how it is shown, what it sets, and its default (None: it is required)."""
        self.name = name
        self.prefix: str = name.upper().replace("-", "_")
        self.completion_variable: str = f"_{self.prefix}_COMPLETE"
        """The environment variable by which shells ask for completions (see `tailsrv_client.completion`)."""
        self.options: list[Option] = []
        self._arguments = tuple(arguments)
        self._usage, self._description, self._epilog = usage, description, epilog

    def option(self, *names: str, **facts: Any) -> None:  # noqa: ANN401 - those of `Option`
        """Add an `Option`."""
        self.options.append(Option(*names, **facts))

    def parse(self, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """The values of all arguments and options. Raises `UsageError`; `SystemExit` after --help and --version."""
        words, positional = self._split(arguments)
        given = vars(self._parser().parse_args(words)) | self._named(positional)
        values: dict[str, Any] = {option.dest: option.default for option in self.options if option.const is None}
        values |= {option.dest: values.get(option.dest, option.default) for option in self.options}
        values |= {  # a default is written as a user would write it
            option.dest: option.value(option.default)
            for option in self.options
            if option.convert is not None and isinstance(option.default, str)
        }
        for option in self.options:
            text = environment.get(option.variable(self.prefix))
            if text is not None and option.dest not in given:
                self._read_variable(option, text, values)
        for option in self.options:
            if option.dest in given and option.const is None:
                try:
                    given[option.dest] = option.value(given[option.dest])
                except UsageError as error:
                    raise UsageError(f"{'/'.join(option.names)}: {error}") from None
        return values | given

    def blamed(self, message: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
        """`message`, about a value, with the environment variable that the value came from."""
        words = {word.strip(":;,") for word in message.split()}
        names = []
        for option in self.options:
            name = option.variable(self.prefix)
            text = environment.get(name)
            if text is None or name in message or any(each.split("=")[0] in option.names for each in arguments):
                continue
            if option.long in words or repr(text) in message:
                names.append(name)
        return f"{message} (env var: {', '.join(names)})" if names else message

    def help(self) -> str:
        """The text of ``--help``."""
        return self._parser().format_help()

    def _read_variable(self, option: Option, text: str, values: dict[str, Any]) -> None:
        name = option.variable(self.prefix)
        if option.const is not None:
            if text.lower() in YES:
                values[option.dest] = option.const
            elif text.lower() not in NO:
                raise UsageError(f"{option.long}: {text!r} is not yes or no (env var: {name})")
        elif text:
            try:
                values[option.dest] = option.value(text)
            except UsageError as error:
                raise UsageError(f"{option.long}: {error} (env var: {name})") from None

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """The options, each joined to its value, and the arguments that are left.

        argparse would take a value that begins with - for an option. It also gives up an optional argument as soon as
        an option comes before it (`ADDR --name a FILE`), and its remedy for that treats -- differently from one Python
        to the next.
        """
        words: list[str] = []
        positional: list[str] = []
        left = iter(arguments)
        for argument in left:
            if argument == "--":
                positional += left
            elif argument == "-" or not argument.startswith("-"):
                positional.append(argument)
            else:
                value = next(left, None) if self._takes_next(argument) else None
                if value is None:
                    words.append(argument)
                else:
                    words.append(f"{argument}={value}" if argument.startswith("--") else f"{argument}{value}")
        return words, positional

    def _takes_next(self, word: str) -> bool:
        """Whether the word after the option `word` is its value; -qc is -q -c, and -c100 has its value within."""
        with_value = {name for option in self.options if option.const is None for name in option.names}
        if word.startswith("--"):
            return word in with_value
        for index, letter in enumerate(word[1:], start=1):
            if f"-{letter}" in with_value:
                return index == len(word) - 1
        return False

    def _named(self, positional: Sequence[str]) -> dict[str, str]:
        """The arguments by what they set. Raises `UsageError`."""
        usage = f"usage: {self.name} {self._usage}"
        if len(positional) > len(self._arguments):
            raise UsageError(f"unexpected argument {positional[len(self._arguments)]!r}; {usage}")
        named = {}
        for number, (shown, dest, default) in enumerate(self._arguments):
            value = positional[number] if number < len(positional) else default
            if value is None:
                raise UsageError(f"{shown} is missing; {usage}")
            named[dest] = value
        return named

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(
            prog=self.name,
            usage=f"%(prog)s {self._usage}",
            description=self._description,
            epilog=self._epilog or None,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=False,
            formatter_class=_Formatter,
        )
        group = parser.add_argument_group("Options")
        for option in self.options:
            facts: dict[str, Any] = {"dest": option.dest, "help": option.shown(self.prefix)}
            if option.const is not None:
                facts |= {"action": "store_const", "const": option.const}
            else:
                facts["metavar"] = option.metavar or f"[{'|'.join(option.choices)}]"
            group.add_argument(*option.names, **facts)
        group.add_argument("-h", "--help", action="help", help="Show this text and exit.")
        group.add_argument(
            "--version", action="version", version=f"%(prog)s {_version()}", help="Show the version and exit."
        )
        return parser


def at_least(least: int) -> Callable[[str], int]:
    """A converter for whole numbers from `least` on."""

    def convert(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= LARGEST_DIGITS) or int(text) < least:
            raise UsageError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return convert


def size_of_at_least(least: int) -> Callable[[str], int]:
    """A converter for sizes in bytes, with or without a unit."""

    def convert(text: str) -> int:
        size = parse_size(text)
        if size < least:
            raise UsageError(f"{text!r} is less than {least} bytes")
        return size

    return convert


def file_path(text: str) -> str:
    """A converter for the path of a file, which need not exist."""
    if os.path.isdir(text):
        raise UsageError(f"{text!r} is a directory; name a file")
    return text


def _version() -> str:
    from tailsrv_client import __version__  # noqa: PLC0415 - the package imports this module's users

    return __version__
