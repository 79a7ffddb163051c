"""The commit mark of a stream as its readers see it: absent, present, gone again, or unreadable.

From the moment that a mark exists, readers see nothing beyond it. Its last value stays valid until there is a new mark.
While a mark is unreadable, the end stays where it was: readers see what they could see before, and nothing more.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tailsrv_formats.errors import reason
from tailsrv_runtime.commit_mark import MarkReader
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import is_shortage
from tailsrv_runtime.watches import is_named

if TYPE_CHECKING:
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.watches import Watches


class WatchedMark:
    """The mark at `path`, which the stream opens, and watches with `watches`."""

    def __init__(self, path: str, watches: Watches, log: Log) -> None:
        self.watch = -1
        """The number of its inotify watch; -1 while there is none."""
        self.problem: str | None = None
        """Why the file at `path` cannot be used as a mark; None if it can be, or if there is none."""
        self.reader: MarkReader | None = None
        """None while it is not open."""
        self._path = path
        self._watches = watches
        self._log = log
        self._committed: int | None = None
        self._was_no_file = False  # `path` is not a regular file: once it is removed, there is no mark

    def open(self, end: int, *, is_start: bool) -> None:
        """Open the mark if it exists; `end` is how far readers have been able to read.

        Raises `OSError` for a shortage, and at the start `FatalError` for a mark that cannot be used.
        """
        try:
            fd, self.watch = self._watches.open(self._path)
        except FileNotFoundError:
            if os.path.islink(self._path):
                self._refuse("a symbolic link to nothing", end, was_no_file=True, is_start=is_start)
            else:
                self._absent()
        except OSError as error:
            if is_shortage(error):
                self._hold(end)
                raise
            self._refuse(reason(error), end, was_no_file=error.errno == errno.EINVAL, is_start=is_start)
        else:
            self.reader, self.problem, self._was_no_file = MarkReader(fd), None, False

    def read(self, end: int) -> int | None:
        """How far readers may read, in bytes; None without a mark. `end` is how far they could read until now."""
        if self.reader is not None:
            try:
                committed = self.reader.read()
            except OSError as error:
                self._refuse(reason(error), end, was_no_file=False, is_start=False)
                return self._committed
            if committed is not None:
                self._committed = committed
            elif self._committed is None:
                self._committed = 0  # just created, and still empty; an older mark stays valid until there is a line
            self.problem = None
        return self._committed

    def has_gone(self) -> bool:
        """Close a mark that was moved, deleted or replaced. Returns whether it was."""
        if self.reader is None or is_named(self.reader.fd, self._path):
            return False
        self._log.warning("commit mark gone", file=self._path, committed=self._committed)
        self._watches.remove(self.watch)
        self.watch = -1
        self.close()
        return True

    def close(self) -> None:
        """Close its descriptor."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def _refuse(self, problem: str, end: int, *, was_no_file: bool, is_start: bool) -> None:
        advice = "make it a readable file, remove it, or give --no-commit-mark"
        if is_start:
            raise FatalError(f"cannot use {self._path}: {problem}; {advice}")
        if problem != self.problem:
            self._log.warning("commit mark unusable", file=self._path, error=problem, end=end, advice=advice)
        self._was_no_file = was_no_file and (self._committed is None or self._was_no_file)
        self.problem = problem
        self._hold(end)

    def _hold(self, end: int) -> None:
        if self._committed is None:
            self._committed = end

    def _absent(self) -> None:
        if self.problem is not None and self._was_no_file:
            self._committed = None
        self._was_no_file, self.problem = False, None
