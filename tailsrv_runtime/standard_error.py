"""Standard error of this process: always open, and nothing that is written to it ever blocks.

`prepare` comes first in every command. Whatever then writes to `sys.stderr` (warnings, progress bars, a traceback) goes
through the same writer as the log.
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
    """What `sys.stderr` is: a text stream without a buffer of its own."""

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
"""For loggers that want a stream."""

_writer: LineWriter | None = None


def writer() -> LineWriter:
    """The one writer to descriptor 2."""
    global _writer  # noqa: PLW0603 - a process has one standard error
    if _writer is None:
        _writer = LineWriter(STANDARD_ERROR)
    return _writer


def prepare() -> None:
    """Open what of the descriptors 0 to 2 is closed, and let `sys.stderr` be what never blocks."""
    global _writer  # noqa: PLW0603 - a process has one standard error
    keep_standard_descriptors()
    if _writer is not None:  # a fork has another standard error than its parent
        _writer.close()
        _writer = None
    sys.stderr = STREAM
    # A shell may have set `stty tostop`: a daemon in the background would be stopped by its first log line.
    with contextlib.suppress(ValueError):  # not on the main thread
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def keep_standard_descriptors() -> None:
    """Open what of 0, 1 and 2 is closed: a socket with such a number would get what is meant for an operator.

    They are opened the wrong way round, as glibc does it for setuid programs: a read or write fails as before, with
    EBADF. (A closed output must not look like one that has taken everything.)
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is the one that is closed. Where there is no /dev, a directory takes no bytes.
            try:
                os.open(os.devnull, flags)
            except OSError:
                os.open("/", os.O_RDONLY)


def say(text: str) -> None:
    """Write one line, whatever is in `text`."""
    writer().write(f"{one_line(text)}\n")


def one_line(text: str) -> str:
    """`text` with everything escaped that could break a line or a terminal: control characters, lone surrogates."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _after_fork() -> None:
    if _writer is not None:
        _writer.after_fork()


os.register_at_fork(after_in_child=_after_fork)
