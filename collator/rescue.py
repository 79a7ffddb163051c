"""Rescue: foreign bytes are moved out of FILE into a file of their own, because somebody may have appended by hand.

Another process may append at any moment, also during a rescue. So all foreign bytes are copied and made durable, then
the bytes that came meanwhile are copied, and FILE is truncated right after a read that found no more. A byte that is
appended between these last two system calls, about a microsecond apart, is lost. Nothing can close that gap while other
programs may write to FILE. Bytes of producers cannot get into it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from tailsrv_runtime.directory import sync_failed
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import open_beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.streamfile import StreamFile

COPY_BYTES: Final = 1 << 20
SUFFIX: Final = ".rescued"


class Rescue:
    """Moves the bytes of FILE from `start` on to a new file."""

    def __init__(self, file: StreamFile, start: int) -> None:
        """Create the new file. Raises `OSError`."""
        self._file = file
        self.start = start
        self.copied = 0
        """The number of bytes moved."""
        name = f"{file.path}{SUFFIX}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{start}"
        number, self.path = 0, name
        while os.path.lexists(self.path):
            number += 1
            self.path = f"{name}.{number}"
        # Until it is complete and durable its name is temporary and swept by the next start: FILE still has the bytes.
        self._name = os.path.join(os.path.dirname(file.path), f".{file.name}{SUFFIX}.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name)
        self._fd = open_beside(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def run(self, advance: Callable[[int], None] = lambda _count: None) -> None:
        """Move the bytes. ``advance(count)`` is called after each part, and may raise to stop.

        Raises `OSError`, and what `advance` raises, and then FILE is unchanged.
        """
        file = self._file
        try:
            self._copy(advance)
            os.fsync(self._fd)
            os.rename(self._name, self.path)
            self._name = self.path
            file.directory.sync()
            before = self.copied
            self._copy(advance)
            self._cut()
        except BaseException:
            self.discard()
            raise
        file.end = self.start
        try:
            if self.copied > before:
                os.fsync(self._fd)
        except OSError as error:
            raise sync_failed(self.path, error) from None
        finally:
            os.close(self._fd)
        if not self.copied:  # another program has removed them meanwhile
            os.unlink(self.path)

    def _cut(self) -> None:
        if self._file.size() < self.start:
            raise FatalError(
                f"{self._file.path} was truncated below byte {self.start}; find the program that truncated it: only the"
                " collator may write this file"
            )
        os.ftruncate(self._file.fd, self.start)

    def discard(self) -> None:
        """Close and remove the new file."""
        os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._name)

    def _copy(self, advance: Callable[[int], None]) -> None:
        """Copy all bytes; FILE may become longer or shorter meanwhile."""
        while data := os.pread(self._file.fd, COPY_BYTES, self.start + self.copied):
            view = memoryview(data)
            while view:
                written = os.write(self._fd, view)
                view = view[written:]
                self.copied += written
            advance(len(data))
