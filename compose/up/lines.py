"""Log lines in `tailsrv-up`: out of the daemons' pipes, and into a file whose disk may hang."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.line_writer import BUFFER_BYTES, LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.reactor import Reactor

LONGEST_LINE: Final = 1 << 16
"""How much of a line is shown, in bytes."""

LAST_WRITE_SECONDS: Final = 1.0
"""How long the last lines may take to reach the log file."""


class LineSplitter:
    """Bytes in, lines out, without their ends. Of a line longer than `LONGEST_LINE` the beginning is kept."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._cut = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        *ended, rest = data.split(b"\n")
        lines = []
        for piece in ended:
            self._take(piece)
            lines.append(self._end())
        self._take(rest)
        return lines

    def end(self) -> list[bytes]:
        """The last line, if the pipe was closed in the middle of it."""
        return [self._end()] if self._rest else []

    def _take(self, piece: bytes) -> None:
        room = LONGEST_LINE - len(self._rest)
        self._rest += piece[:room]
        self._cut += max(0, len(piece) - room)

    def _end(self) -> bytes:
        line = bytes(self._rest)
        if self._cut:
            line += b" ... (%d bytes more)" % self._cut
        self._rest.clear()
        self._cut = 0
        return line


class LogFile:
    """Appends lines to a file. A thread waits for the disk; lines beyond `BUFFER_BYTES` are dropped and counted.

    The thread is a daemon thread: a disk that hangs does not keep the process from ending, as an executor's would.
    """

    def __init__(self, path: str, reactor: Reactor, report: Callable[[int], str]) -> None:
        """Open the file. ``report(count)`` is the line for `count` dropped lines. Raises `FatalError`."""
        # O_NONBLOCK: a named pipe without a reader is an error here, and not a start that hangs.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise FatalError(
                f"cannot open --log-file {path}: {reason(error)}; name a file that can be written"
            ) from None
        self._writer = LineWriter(self._fd, report)
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._size = 0
        self._dropped = 0
        self._ended = False
        self._thread: threading.Thread | None = None
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            self._thread = threading.Thread(target=self._run, name="log file", daemon=True)
            self._thread.start()
        else:
            self._writer.attach(reactor)

    def write(self, line: str) -> None:
        """Append a line, soon."""
        if self._thread is None:
            self._writer.write(line)
            return
        with self._changed:
            if self._size + len(line) > BUFFER_BYTES and self._lines:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._size += len(line)
                self._changed.notify()

    def close(self) -> None:
        """Append the waiting lines, if that takes no longer than `LAST_WRITE_SECONDS`."""
        if self._thread is None:
            self._writer.detach()
            return
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(LAST_WRITE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                lines, self._lines, self._size = self._lines, [], 0
                dropped, self._dropped = self._dropped, 0
                ended = self._ended
            for line in lines:
                self._writer.write(line)
            self._writer.drop(dropped)
            if ended:
                return
