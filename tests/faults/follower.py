"""A consumer that keeps what it has seen, so that it can be compared with the file for ever after.

`MarkFollower` reads the file as PROTOCOLS section 6 lets it: no further than FILE.commit. `ServedFollower`
hears the same from a real `tailsrv`. Both keep the bytes in a file outside of the file system under fault.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import threading
import zlib
from pathlib import Path
from typing import Final, Protocol

from tests.faults.checker import Findings, check_seen
from tests.faults.daemon import Daemon

_LINE: Final = re.compile(rb"(\d{20}) ([0-9a-f]{8})\n")
_STEP: Final = 1 << 22
_PERIOD: Final = 0.002  # s; looking that often misses no mark for long and costs 1 % of a core


def committed(file: Path) -> int:
    """How far consumers may read FILE at this moment."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return 0
    try:
        mark = Path(f"{file}.commit").read_bytes()
    except FileNotFoundError:
        return size
    lengths = [int(digits) for digits, crc in _LINE.findall(mark) if zlib.crc32(digits) == int(crc, 16)]
    return min(size, max(lengths, default=0))


class Follower(Protocol):
    """What both kinds of consumer can do."""

    kept: Path

    def verify(self, *, everything: bool = False) -> Findings:
        """Compare what was seen (the last 4 MiB, or everything) with what the file holds now."""
        ...

    def seen(self) -> int:
        """How many bytes have been seen."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class _Keeper:
    """Bytes seen, in a file of their own."""

    def __init__(self, file: Path, kept: Path) -> None:
        self.file = file
        self.kept = kept
        self._sink = kept.open("ab", buffering=0)
        self._length = self._sink.tell()
        self._lock = threading.Lock()

    def keep(self, data: bytes) -> None:
        with self._lock:
            self._sink.write(data)
            self._length += len(data)

    def seen(self) -> int:
        return self._length

    def verify(self, *, everything: bool = False) -> Findings:
        with self._lock:
            start = 0 if everything else max(0, self._length - (4 << 20))
            return check_seen(self.file, self.kept, start=start)


class MarkFollower(_Keeper):
    """Follows FILE by its commit mark, in a thread; `pause` while its file system is being unmounted."""

    def __init__(self, file: Path, kept: Path) -> None:
        super().__init__(file, kept)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.resume()

    def resume(self) -> None:
        """Read on, in the thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stop reading and let go of the file."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    close = pause

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD):
            self.look()

    def look(self) -> None:
        """See all that may be seen at this moment; an unreadable file shows nothing."""
        try:
            end = committed(self.file)
            if end <= self._length:
                return
            with self.file.open("rb") as source:
                source.seek(self._length)
                while data := source.read(min(_STEP, end - self._length)):
                    self.keep(data)
        except OSError:
            return  # a file system that was shut down answers EIO: a consumer there sees nothing


class ServedFollower(_Keeper):
    """Follows FILE through a real tailsrv from byte 0 on; the broadcaster lives on when the collator dies."""

    def __init__(self, file: Path, kept: Path) -> None:
        super().__init__(file, kept)
        tailsrv = str(Path(sys.executable).with_name("tailsrv"))
        argv = [sys.executable, tailsrv, str(file), "--listen", "127.0.0.1:0"]
        self._daemon = Daemon(argv, kept.with_suffix(".tailsrv-log"))
        try:
            self._socket = socket.create_connection(self._daemon.wait_ready())
        except BaseException:
            self._daemon.kill()
            raise
        self._socket.sendall(b"0\n")
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while self._wake not in dict(poller.poll()):
            data = self._socket.recv(1 << 18)
            if not data:
                return
            self.keep(data)

    def close(self) -> None:
        os.write(self._waker, b".")
        self._thread.join()
        self._socket.close()
        os.close(self._wake)
        os.close(self._waker)
        self._daemon.kill()
