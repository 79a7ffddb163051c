"""Durations as options of a command."""

from __future__ import annotations

from typing import Any

import click

from tailsrv_client.protocol.places import parse_duration
from tailsrv_formats.errors import UsageError


class Duration(click.ParamType[float]):
    """Seconds, with or without a unit: 30, 500ms, 5m."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's signature
        """Parse it; click reports what is wrong with it."""
        try:
            return value if isinstance(value, float) else parse_duration(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
