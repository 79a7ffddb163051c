"""What the three prototypes share: the file, its watch, the listening socket, readiness."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

import inotify_simple

READ_BYTES = 1 << 18
BACKLOG = 4096
EVENTS_BYTES = 1 << 16


class Stream:
    """The file that is served, and where its end was when somebody last looked."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.watch = inotify_simple.INotify(nonblocking=True)
        self.watch.add_watch(path, inotify_simple.flags.MODIFY)
        self.length = os.fstat(self.descriptor).st_size

    def grown(self) -> tuple[int, bytes]:
        """Take all events at once; return where the new bytes begin, and the bytes."""
        os.read(self.watch.fileno(), EVENTS_BYTES)  # which they are does not matter, so they need no parsing
        before = self.length
        fresh = os.pread(self.descriptor, READ_BYTES, before)
        self.length = before + len(fresh)
        return before, fresh

    def start(self, header: bytes) -> int:
        """Return the byte that a header asks for."""
        wanted = int(header)
        return wanted if wanted >= 0 else max(0, self.length + wanted)

    def behind(self, at: int) -> bytes:
        """Return some of the bytes that a client at `at` has not been sent."""
        return os.pread(self.descriptor, min(READ_BYTES, max(0, self.length - at)), at)


def begin() -> tuple[Stream, socket.socket, int]:
    """Read the command line; return the file, the listening socket, and the descriptor to tell readiness on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--ready-fd", type=int, required=True)
    given = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    return Stream(given.file), listener, given.ready_fd


def tell_ready(listener: socket.socket, descriptor: int) -> None:
    """Say where it listens, as the daemons do."""
    os.write(descriptor, b'{"addresses": ["127.0.0.1:%d"]}\n' % listener.getsockname()[1])
    os.close(descriptor)
