"""The file of the commit mark: the collator writes it, every other daemon reads it."""

from __future__ import annotations

import os

from tailsrv_formats.commit_mark import LINE_BYTES, MARK_BYTES, decode, decode_line, encode_line
from tailsrv_runtime.directory import create_file
from tailsrv_runtime.files import open_beside, open_regular, write_at


class MarkReader:
    """A reader's side of the mark. Raises `OSError` where the file can't be opened or read, or is no regular file."""

    def __init__(self, file: str | int) -> None:
        """`file` is its path, or a descriptor that is the reader's from now on."""
        self.fd = file if isinstance(file, int) else open_regular(file)
        self._content = b""
        self._length: int | None = None

    def read(self) -> int | None:
        """The committed length in bytes; None while the file holds no valid line."""
        content = os.pread(self.fd, MARK_BYTES, 0)
        if content != self._content:
            self._content, self._length = content, decode(content)
        return self._length

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self.fd)


class MarkWriter:
    """The collator's side. There must be one for a file; the lock on the stream sees to that."""

    def __init__(self, file: str | int, length: int) -> None:
        """Create the mark at `length`, whole from the first moment on, or set the one that exists to it.

        `file` is its path, or a descriptor of one that exists, which is the writer's from now on.
        """
        if isinstance(file, int):
            self.fd = file
        else:
            try:
                self.fd = open_beside(file, os.O_RDWR)
            except FileNotFoundError:
                self.fd = create_file(file, encode_line(length) * 2)
        # The line to overwrite first is the larger one: a mark that goes back must not be outvoted by what it was.
        lines = os.pread(self.fd, MARK_BYTES, 0)
        first, second = decode_line(lines[:LINE_BYTES]), decode_line(lines[LINE_BYTES:])
        self._slot = int((second or 0) > (first or 0))
        if (first, second) != (length, length):
            self.move(length)
            self.move(length)

    def move(self, length: int) -> None:
        """Let consumers read up to `length`. Raises `OSError`; the mark then says what it said before."""
        write_at(self.fd, encode_line(length), self._slot * LINE_BYTES)
        self._slot ^= 1

    def close(self) -> None:
        """Give back the descriptor; the file stays."""
        os.close(self.fd)
