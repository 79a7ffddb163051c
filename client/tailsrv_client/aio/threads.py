"""Runs calls that may wait for a disk in threads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

Parameters = ParamSpec("Parameters")


async def in_thread(
    function: Callable[Parameters, object], *arguments: Parameters.args, **named: Parameters.kwargs
) -> None:
    """Call `function` in a thread; the call is over when this returns or raises, also when it is cancelled."""
    doing = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})  # a file must not be written by two threads at once
        raise
