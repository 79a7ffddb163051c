"""What a wake-up costs with each inotify binding: an append, then everything until the reader knows of it.

python -m bench.inotify
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

from inotify_simple import INotify, flags

if TYPE_CHECKING:
    from collections.abc import Callable

APPENDS = 20_000
ROUNDS = 5


def _floor(append: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(APPENDS):
        append()
    return time.perf_counter() - started


def with_inotify_simple(path: str, append: Callable[[], object]) -> float:
    """Seconds for all appends, each read and parsed by the binding."""
    with INotify(nonblocking=True) as inotify:
        inotify.add_watch(path, flags.MODIFY)
        started = time.perf_counter()
        for _ in range(APPENDS):
            append()
            inotify.read(timeout=0)
        return time.perf_counter() - started


def without_parsing(path: str, append: Callable[[], object]) -> float:
    """Seconds for all appends, where the usual event is recognized by its bytes."""
    with INotify(nonblocking=True) as inotify:
        watch = inotify.add_watch(path, flags.MODIFY)
        usual = watch.to_bytes(4, "little") + int(flags.MODIFY).to_bytes(4, "little") + bytes(8)
        fd = inotify.fileno()
        started = time.perf_counter()
        for _ in range(APPENDS):
            append()
            if os.read(fd, 65536) != usual:
                raise AssertionError("an append had another event")
        return time.perf_counter() - started


async def with_asyncinotify(path: str, append: Callable[[], object]) -> float:
    """Seconds for all appends, each awaited through asyncinotify."""
    from asyncinotify import Inotify, Mask  # noqa: PLC0415 - installed for this comparison alone

    with Inotify() as inotify:
        inotify.add_watch(path, Mask.MODIFY)
        started = time.perf_counter()
        for _ in range(APPENDS):
            append()
            await inotify.get()
        return time.perf_counter() - started


def main() -> None:
    """Print microseconds a wake-up, the append's own cost taken off; medians of rounds in turn."""
    with tempfile.NamedTemporaryFile() as file:

        def append() -> int:
            return os.write(file.fileno(), b"x" * 100)

        ways: dict[str, Callable[[], float]] = {
            "asyncinotify": lambda: asyncio.run(with_asyncinotify(file.name, append)),
            "inotify-simple": lambda: with_inotify_simple(file.name, append),
            "inotify-simple, not parsed": lambda: without_parsing(file.name, append),
        }
        rounds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            floor = _floor(append)
            for name, way in ways.items():
                rounds[name].append((way() - floor) / APPENDS * 1e6)
    for name, found in rounds.items():
        print(f"{name:<28} {statistics.median(found):6.2f} µs")


if __name__ == "__main__":
    main()
