"""What the daemons' options take, and what their errors say."""

from __future__ import annotations

from typing import Any

import click
import pytest

from tailsrv_formats.addresses import Address
from tailsrv_runtime.option_types import PORT, Duration, ListenAddress, Size, WholeNumber


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Size(), "1", 1),
        (Size(64, 1 << 24), "16MiB", 1 << 24),
        (Size(), "10M", 10_000_000),
        (Duration(), "500ms", 0.5),
        (Duration(), "7d", 604800.0),
        (Duration(), ".5", 0.5),
        (Duration(allow_zero=True), "0", 0.0),
        (WholeNumber(1, 1024), "1024", 1024),
        (PORT, "0", 0),
        (ListenAddress(), ":80", Address(port=80)),
        (ListenAddress(), "unix:/run/x", Address(path="/run/x")),
    ],
)
def test_a_valid_value(kind: click.ParamType[Any], text: str, value: object) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "error"),
    [
        (Size(64, 1 << 24), "63", "'63' is too small; the least is 64"),
        (Size(64, 1 << 24), "17MiB", "'17MiB' is too large; the most is 16MiB"),
        (Size(), "0", "'0' is too small; the least is 1"),
        (Size(), "much", "'much' is not a size; write 4096, 64KiB, 10M or 1GiB"),
        (Duration(), "0", "'0' is not a duration; write 30s, 500ms, 5m, 2h or 7d"),
        (Duration(), "inf", "'inf' is not a duration; write 30s, 500ms, 5m, 2h or 7d"),
        (WholeNumber(1, 1024), "0", "0 is out of range; write 1 to 1024"),
        (WholeNumber(1, 1024), "٣", "'٣' is not a whole number; write 1 to 1024"),
        (WholeNumber(1, 1024), "9" * 5000, "is not a whole number; write 1 to 1024"),
        (PORT, "http", "'http' is not a whole number; write 0 to 65535"),
        (ListenAddress(), "80", "invalid address '80'; write HOST:PORT, [V6]:PORT, :PORT or unix:PATH"),
    ],
)
def test_an_invalid_value_is_an_error_that_states_the_valid_ones(
    kind: click.ParamType[Any], text: str, error: str
) -> None:
    with pytest.raises(click.BadParameter) as raised:
        kind.convert(text, None, None)
    assert raised.value.message.endswith(error)
