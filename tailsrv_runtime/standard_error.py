"""Standard error of this process: always open, and a write to it never blocks.

Every command calls `prepare` first. All writes to `sys.stderr` (warnings, progress bars, a traceback) then go through
the same writer as the log.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

from tailsrv_runtime.line_writer import LineWriter

STANDARD_ERROR = 2


class _Text(io.TextIOBase):
    """The value of `sys.stderr`: a text stream without a buffer of its own."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STANDARD_ERROR

    def isatty(self) -> bool:
        return os.isatty(STANDARD_ERROR)

    def write(self, text: str) -> int:
        writer().write(text)
        return len(text)


STREAM = _Text()
"""For structlog and `sys.stderr`, which need a stream."""

_writer: LineWriter | None = None


def writer() -> LineWriter:
    """The one writer to descriptor 2."""
    global _writer  # noqa: PLW0603 - a process has one standard error
    if _writer is None:
        _writer = LineWriter(STANDARD_ERROR)
    return _writer


def prepare() -> None:
    """Open those of the descriptors 0 to 2 that are closed, and replace `sys.stderr` by `STREAM`."""
    global _writer  # noqa: PLW0603 - a process has one standard error
    keep_standard_descriptors()
    if _writer is not None:  # a forked child may have another standard error than its parent
        _writer.close()
        _writer = None
    sys.stderr = STREAM
    # With `stty tostop`, SIGTTOU would stop a background daemon at its first log line.
    with contextlib.suppress(ValueError):  # not on the main thread
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def keep_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed: a socket with such a number would receive text for the operator.

    They are opened in the wrong direction, as glibc does for setuid programs, so that reads and writes fail with EBADF
    as before. (A closed output must not look like one that has accepted everything.)
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) returns the lowest free number, which is this one. Without /dev, a directory does as well.
            try:
                os.open(os.devnull, flags)
            except OSError:
                os.open("/", os.O_RDONLY)


def say(text: str) -> None:
    """Write `text` as one line."""
    writer().write(f"{one_line(text)}\n")


def one_line(text: str) -> str:
    """`text`, in which everything is escaped that could break a line or a terminal: control characters, surrogates."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _after_fork() -> None:
    if _writer is not None:
        _writer.after_fork()


os.register_at_fork(after_in_child=_after_fork)
