"""Watches the daemons: shows their logs, says when all listen, ends them together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import aiofiles
import click
import msgspec

from compose.up.table import describe
from tailsrv.kit.daemon import Notifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from compose.up.options import Options
    from compose.up.parts import Part

READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
"""How long a daemon may take to commit and to drain before it is killed."""

LINE_BYTES: Final = 1 << 20


class Launcher:
    """Started parts, watched until Ctrl-C or SIGTERM, or until one of them ends by itself."""

    def __init__(self, options: Options, parts: list[Part]) -> None:
        self._options = options
        self._parts = parts
        self._width = max(len(part.name) for part in parts)
        self._colours = sys.stderr.isatty()
        self._stop = asyncio.Event()
        self._ended = {part.pid: asyncio.Event() for part in parts}
        self._failed = False

    async def run(self) -> int:
        """Watch until all have ended; the exit code: 0 when that was asked for and went well."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        async with _log_file(self._options.log_file) as write, asyncio.TaskGroup() as tasks:
            for part in self._parts:
                tasks.create_task(self._show_log(part, write))
            self._reap()  # who ended before the handler stood
            announcing = asyncio.create_task(self._announce())
            await self._stop.wait()
            announcing.cancel()
            await self._stop_all()
        return 1 if self._failed else 0

    async def _announce(self) -> None:
        """Wait until all listen, and say so."""
        found: dict[str, list[str]] = {}
        try:
            async with asyncio.timeout(READY_SECONDS):
                for part in self._parts:
                    async for line in _lines(part.ready):
                        found |= msgspec.json.decode(line)
                        break
                    else:
                        return  # it ended; its log says why
        except TimeoutError:
            self._complain(f"not ready after {READY_SECONDS:.0f} s; the log lines above say more")
            self._failed = True
            self._stop.set()
            return
        lanes = {
            "broadcast": found["broadcast"][0],
            "collate": found["raw"][0],
            "acknowledged": found["acknowledged"][0],
            "index": found["index"][0],
        }
        click.echo(describe(self._options.file, self._options.framing, lanes))
        if self._options.ready_fd is not None:
            with os.fdopen(self._options.ready_fd, "wb") as ready:
                ready.write(msgspec.json.encode({"addresses": list(lanes.values())}) + b"\n")
        Notifier().send("READY=1")

    async def _show_log(self, part: Part, write: Callable[[str], None]) -> None:
        label = f"{part.name:<{self._width}} | "
        shown = click.style(label, fg="cyan") if self._colours else label
        async for line in _lines(part.log):
            text = line.decode(errors="backslashreplace")
            click.echo(shown + text, err=True)
            write(f"{label}{text}\n")

    def _reap(self) -> None:
        for part in self._parts:
            if self._ended[part.pid].is_set():
                continue
            pid, status = os.waitpid(part.pid, os.WNOHANG)
            if not pid:
                continue
            self._ended[part.pid].set()
            code = os.waitstatus_to_exitcode(status)
            if code != 0 or not self._stop.is_set():
                # One that ends by itself, however it ends, is a failure of the whole.
                self._failed = True
                self._complain(f"{part.name} {_how(code)}; stopping the others")
            self._stop.set()

    async def _stop_all(self) -> None:
        """One after the other, the writer first: its last commit is still served and indexed."""
        for part in self._parts:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                if self._ended[part.pid].is_set():
                    break
                os.kill(part.pid, signum)  # not reaped yet, so the number is still its own
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended[part.pid].wait(), STOP_SECONDS)

    @staticmethod
    def _complain(message: str) -> None:
        click.echo(f"tailsrv-up: {message}", err=True)


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


async def _lines(fd: int) -> AsyncIterator[bytes]:
    """The lines that come through a pipe, without their ends."""
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    try:
        while line := await reader.readline():
            yield line.rstrip(b"\n")
    finally:
        transport.close()


@contextlib.asynccontextmanager
async def _log_file(path: str | None) -> AsyncIterator[Callable[[str], None]]:
    """A function that appends to the file in the background: a disk that hangs must not stop the terminal's log."""
    if path is None:
        yield lambda _text: None
        return
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def write_all() -> None:
        async with aiofiles.open(path, "a", encoding="utf-8") as file:
            while (text := await queue.get()) is not None:
                await file.write(text)
                if queue.empty():
                    await file.flush()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write_all())
        yield queue.put_nowait
        queue.put_nowait(None)
