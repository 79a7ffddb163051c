"""The types of the daemons' option values, for click: addresses, sizes, durations and whole numbers.

Each type parses what an operator writes, and its error says what is valid. Defaults are given to click in the
operator's form as well (``default="256MiB"``), so that `--help` shows them that way.
"""

from __future__ import annotations

from typing import Any, Final

import click

from tailsrv_formats.addresses import Address, parse_address
from tailsrv_formats.errors import UsageError
from tailsrv_formats.quantities import LARGEST_SIZE, format_size, parse_duration, parse_size


class ListenAddress(click.ParamType[Address]):
    """An address to listen on: HOST:PORT, [V6]:PORT, :PORT or unix:PATH."""

    name = "ADDR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:  # noqa: ANN401 - click's signature
        """Parse the address. Raises `click.BadParameter`."""
        try:
            return value if isinstance(value, Address) else parse_address(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """A number of bytes, `least` to `most`, with or without a unit: 65536, 10M, 1GiB."""

    name = "BYTES"

    def __init__(self, least: int = 1, most: int = LARGEST_SIZE) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 - click's signature
        """Parse the size. Raises `click.BadParameter`."""
        try:
            size = value if isinstance(value, int) else parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if size < self._least:
            self.fail(f"{value!r} is too small; the least is {format_size(self._least)}", param, ctx)
        if size > self._most:
            self.fail(f"{value!r} is too large; the most is {format_size(self._most)}", param, ctx)
        return size


class Duration(click.ParamType[float]):
    """A time in seconds, more than 0 (or, with `allow_zero`, 0), with or without a unit: 0.5, 500ms, 30s, 7d."""

    name = "DURATION"

    def __init__(self, *, allow_zero: bool = False) -> None:
        self._allow_zero = allow_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's signature
        """Parse the duration. Raises `click.BadParameter`."""
        try:
            return value if isinstance(value, float) else parse_duration(value, allow_zero=self._allow_zero)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class WholeNumber(click.ParamType[int]):
    """A whole number, `least` to `most`. Unlike `click.IntRange`, its help and its errors are in words."""

    def __init__(self, least: int, most: int, name: str = "N") -> None:
        self.name = name
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 - click's signature
        """Parse the number. Raises `click.BadParameter`."""
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
            self.fail(f"{text!r} is not a whole number; write {self._least} to {self._most}", param, ctx)
        if not self._least <= int(text) <= self._most:
            self.fail(f"{text} is out of range; write {self._least} to {self._most}", param, ctx)
        return int(text)


LONGEST_NUMBER: Final = 18
"""Digits. No limit of an option is near it, and Python's own conversion refuses more than 4,300."""

PORT: Final = WholeNumber(0, 65535, "PORT")
DESCRIPTOR: Final = WholeNumber(0, 2**31 - 1)
