"""Readers of a standard error or output that do not do what one expects of a reader."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
import termios
import tty
from typing import TYPE_CHECKING

from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("full pipe", "stopped terminal", "full socket", "no reader", "hung up terminal")


class Output:
    """A descriptor to give to a process, in a state that takes no more, and the end to read from."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if "terminal" in kind:
            self.end, self.fd = pty.openpty()
            tty.setraw(self.fd)
        elif "socket" in kind:
            ours, theirs = socket.socketpair()
            self.end, self.fd = ours.detach(), theirs.detach()
        else:
            self.end, self.fd = os.pipe()
        self.filled = 0
        if kind.startswith("full"):
            self._fill()
        elif kind == "stopped terminal":
            termios.tcflow(self.fd, termios.TCOOFF)
        elif kind in {"no reader", "hung up terminal"}:
            os.close(self.end)
            self.end = -1

    def _fill(self) -> None:
        os.set_blocking(self.fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filled += os.write(self.fd, b"#" * 4095 + b"\n")
        os.set_blocking(self.fd, True)  # the process's description is this one

    def read(self, until: bytes) -> bytes:
        """Read on until this and the end of its line have come; all that came, without what it was filled with."""
        if self.kind == "stopped terminal":
            termios.tcflow(self.fd, termios.TCOON)
        data = bytearray()
        while until not in data or not data.endswith(b"\n"):
            assert select.select([self.end], [], [], PATIENCE)[0], f"no {until!r} in {bytes(data[-2000:])!r}"
            data += os.read(self.end, 1 << 16)
        return b"".join(line for line in bytes(data).splitlines(keepends=True) if not line.startswith(b"#"))

    def close(self) -> None:
        for fd in (self.end, self.fd):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def output(kind: str) -> Iterator[Output]:
    """One of `KINDS`."""
    made = Output(kind)
    try:
        yield made
    finally:
        made.close()
