"""The commit mark of a stream as its readers find it: absent, there, gone again, or nothing that can be read.

From the moment that there is one, nothing beyond it may be shown. What a mark said last holds until there is a new one.
While there is one that can't be read, where the end was holds: what has been shown may be shown, and nothing more.
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
    """The mark at `path`, opened when the stream says so and watched by its `watches`."""

    def __init__(self, path: str, watches: Watches, log: Log) -> None:
        self.watch = -1
        """The number of its watch; -1 while there is none."""
        self.problem: str | None = None
        """Why what bears its name can't be used; None when it can, or when there is nothing."""
        self.reader: MarkReader | None = None
        """None while it is not open."""
        self._path = path
        self._watches = watches
        self._log = log
        self._committed: int | None = None
        self._was_no_file = False  # what can't be used is no file at all: there is no mark once it has been removed

    def open(self, end: int, *, is_start: bool) -> None:
        """Look for it while it is not open; `end` is how far the stream has been shown.

        Raises `OSError` for a shortage, and `FatalError` at a start with a mark that can't be used.
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
            self.reader, self.problem = MarkReader(fd), None

    def read(self, end: int) -> int | None:
        """How far consumers may read, in bytes; None without a mark. `end` is how far they have been able to."""
        if self.reader is not None:
            try:
                committed = self.reader.read()
            except OSError as error:
                self._refuse(reason(error), end, was_no_file=False, is_start=False)
                return self._committed
            if committed is not None:
                self._committed = committed
            elif self._committed is None:
                self._committed = 0  # it has just been created; an older one holds until this one has a valid line
            self.problem = None
        return self._committed

    def has_gone(self) -> bool:
        """Let go of a mark that was moved, deleted or replaced; whether it was."""
        if self.reader is None or is_named(self.reader.fd, self._path):
            return False
        self._log.warning("commit mark gone", file=self._path, committed=self._committed)
        self._watches.remove(self.watch)
        self.watch = -1
        self.close()
        return True

    def close(self) -> None:
        """Give back its descriptor."""
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
