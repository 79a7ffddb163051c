"""A growing file as its readers see it: how far it may be read, and when that changes.

The end of a stream is the smaller of its commit mark and its size; without a mark, its size. inotify reports when
either changes, so that an idle stream never wakes the daemon. The directory is watched too: a file or a mark that does
not exist yet is opened when it appears, and one that is moved or deleted is noticed. Events of the directory's other
names are requested only while the file or the mark is missing.

From the moment that the mark exists, readers see nothing beyond it. While it cannot be read, because descriptors have
run out or because it is not a readable file, the end stays where it was.

This module knows nothing of messages, sockets or clients.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from tailsrv_formats.commit_mark import SUFFIX
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.reactor import READ
from tailsrv_runtime.shortage import Retried, ShortageError, is_shortage
from tailsrv_runtime.uncommitted import Uncommitted
from tailsrv_runtime.watched_mark import WatchedMark
from tailsrv_runtime.watches import Watches, flags, is_named, parse_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

EVENTS_BYTES: Final = 16 + 255 + 1
"""The first read: room for the longest event (inotify(7)), and for the events of usual appends."""

MORE_EVENTS_BYTES: Final = 1 << 16
"""The second read, for all further events."""

# Plain numbers: operations on members of an enumeration cost microseconds, and these happen at every append.
_MODIFY: Final = int(flags.MODIFY)
_OVERFLOW: Final = int(flags.Q_OVERFLOW)
_ITSELF: Final = int(flags.MOVE_SELF | flags.DELETE_SELF)
_NO_NAMES: Final = int(flags.ONLYDIR) | _ITSELF
"""Events of the directory while the file and the mark are open."""

_NEW_NAMES: Final = int(flags.CREATE | flags.MOVED_TO) | _NO_NAMES
"""Events of the directory while one of them is missing."""

_ALL_NAMES: Final = int(flags.ATTRIB | flags.DELETE | flags.MOVED_FROM) | _NEW_NAMES
"""Events of the directory while there is a mark that cannot be used."""

_DIRECTORY_LOST: Final = int(flags.IGNORED | flags.UNMOUNT) | _ITSELF


class Stream:
    """Watches the file at `path`, and reports its events to three callbacks.

    `changed()`: `end` may have moved, forwards or backwards, and is up to date. `gone()`: the file was moved or
    deleted; called once, and `fd` stays readable. `failed(error)`: the file appeared but cannot be served. A callback
    may close the stream.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        log: Log,
        *,
        changed: Callable[[], None],
        gone: Callable[[], None],
        failed: Callable[[FatalError], None],
        use_mark: bool = True,
        poll_seconds: float | None = None,
    ) -> None:
        """Raises `OSError` for a shortage (see `shortage`); the caller may retry later."""
        self.path = path
        self.fd = -1
        """The open file; -1 while there is none."""
        self.end = 0
        """How far consumers may read, in bytes. 0 while there is no file."""
        self.size = 0
        """The file's size at the last `refresh`, in bytes."""
        self.committed: int | None = None
        """The value of the mark, in bytes; None without a mark. While the mark cannot be read: the end before that."""
        self.has_shrunk = False
        """Whether any `refresh` found the file shorter than the one before."""

        self._reactor = reactor
        self._log = log
        self._changed = changed
        self._gone = gone
        self._failed = failed
        self._use_mark = use_mark
        self._poll_seconds = poll_seconds
        self._directory, self._name = os.path.split(path)
        self._mark_path = path + SUFFIX
        self._is_open = self._is_closed = self._is_gone = False
        self._file_watch = self._directory_watch = -1
        self._names_asked = 0  # the events of the directory that are requested at the moment
        self._usual_events: tuple[bytes, ...] = ()
        self._watches = Watches()
        self._inotify_fd = self._watches.fd
        self._mark = WatchedMark(self._mark_path, self._watches, log)
        self._uncommitted = Uncommitted(reactor, path, log)
        self._opening = Retried(reactor, log, "opening the file", self._open_file, failed=failed, file=path)
        self._opening_mark = Retried(
            reactor, log, "opening the commit mark", self._open_mark, failed=failed, file=self._mark_path
        )
        self._watching = Retried(reactor, log, "watching the directory", self._watch_names, failed=failed, file=path)
        self._file_problem: str | None = None
        self._poll_timer: Timer | None = None

    def open(self) -> None:
        """Start to watch. A missing file is opened when it appears.

        Raises `FatalError` for a file or a mark that cannot be served, `OSError` for a shortage.
        """
        self._watch_names()
        self._open_file()
        if self._use_mark:
            self._open_mark()
        self._watch_names()
        self._reactor.register(self._inotify_fd, READ, self._on_events)
        self._is_open = True
        if self.fd < 0:
            self._log.info("waiting for the file", file=self.path)
        self.refresh()
        self._schedule_poll()

    def close(self) -> None:
        """Stop watching and close the file."""
        self._is_closed = True
        for retried in (self._opening, self._opening_mark, self._watching):
            retried.cancel()
        self._uncommitted.cancel()
        if self._poll_timer is not None:
            self._poll_timer.cancel()
        self._reactor.unregister(self._inotify_fd)
        self._watches.close()
        self._mark.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def refresh(self) -> None:
        """Read the size and the mark, and set `end`. Costs one lseek and one pread."""
        if self.fd < 0:
            return
        try:
            size = os.lseek(self.fd, 0, os.SEEK_END)  # a quarter of the cost of fstat, which builds a large result
        except OSError as error:
            self._on_size_error(error)
            return
        self._file_problem = None
        if size < self.size:
            self.has_shrunk = True
            self._log.warning("file truncated", file=self.path, size=size, was=self.size)
        self.size = size
        committed = self._mark.read(self.end)
        if committed is None:
            self.end = size
            if self.committed is not None:
                self._uncommitted.cancel()
        else:
            self.end = min(committed, size)
            self._uncommitted.look(committed, size)
        self.committed = committed

    def _on_size_error(self, error: OSError) -> None:
        """The size cannot be read (a stale NFS handle, a failing disk): the end stays where it was."""
        if self._file_problem is None:
            self._log.warning("file not accessible", file=self.path, error=reason(error), end=self.end)
        self._file_problem = reason(error)

    def look(self) -> None:
        """As `refresh`, but first look for a file or a mark whose event has not arrived yet.

        For answers that depend on the present end. Costs a system call more than `refresh` for each missing name.
        """
        if self._is_missing():
            self._look_for_names()
        self.refresh()

    def unhealthy(self) -> str | None:
        """Why the stream cannot be followed at the moment; None if it can."""
        paused = self._opening.paused or self._opening_mark.paused or self._watching.paused
        if paused is None and self.fd < 0:
            return f"{self.path} does not exist yet"
        if paused is None and self._file_problem is not None:
            return f"{self.path} is not accessible: {self._file_problem}"
        if paused is None and self._mark.problem is not None:
            return f"{self._mark_path} cannot be used: {self._mark.problem}; readers see nothing beyond byte {self.end}"
        return paused

    # --- the file and its mark appear

    def _open_file(self) -> None:
        try:
            self.fd, self._file_watch = self._watches.open(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            if is_shortage(error):
                raise
            if error.errno == errno.EINVAL:
                text = f"{self.path} is not a regular file; a stream is a regular file that grows"
            else:
                text = f"cannot read {self.path}: {reason(error)}; make it readable for this user"
            raise FatalError(text) from None
        self._note_usual_events()
        if self._is_open:
            self._log.info("file appeared", file=self.path)
        self._report_if_late(self._opening)

    def _open_mark(self) -> None:
        self._mark.open(self.end, is_start=not self._is_open)
        self._note_usual_events()
        self._report_if_late(self._opening_mark)

    def _report_if_late(self, retried: Retried) -> None:
        """Report a change after a retry: it does not happen in an event's handler, which would report it at its end."""
        if retried.paused is not None:
            self._reactor.call_later(0, self._look_again)

    def _look_again(self) -> None:
        if self._is_closed:
            return
        try:
            self._look_for_names()
        except FatalError as error:
            self._failed(error)
            return
        self.refresh()
        self._changed()

    def _look_for_names(self) -> None:
        if self.fd < 0 and _exists(self.path):
            self._opening()
        if self._use_mark and self._mark.reader is None and not self._is_gone:
            held = self._mark.problem is not None or self._opening_mark.paused is not None
            if held or _exists(self._mark_path):
                self._opening_mark()
        if self._names_wanted() != self._names_asked:
            self._watching()

    def _is_missing(self) -> bool:
        """Whether the file or the mark is missing."""
        return self.fd < 0 or (self._use_mark and self._mark.reader is None and not self._is_gone)

    def _names_wanted(self) -> int:
        if not self._is_missing():
            return _NO_NAMES
        return _NEW_NAMES if self._mark.problem is None else _ALL_NAMES

    def _watch_names(self) -> None:
        """Request the events of the directory that are needed now."""
        wanted = self._names_wanted()
        if wanted == self._names_asked:
            return
        try:
            self._directory_watch = self._watches.add(self._directory or ".", wanted)
        except OSError as error:
            if wanted == _NO_NAMES:
                return
            if is_shortage(error):
                raise
            if not self._is_open:
                text = f"cannot watch {error.filename}: {reason(error)}; create the stream's directory"
                raise FatalError(text) from None
            self._names_asked = 0
            raise ShortageError(error, reason(error), "create the stream's directory") from None
        self._names_asked = wanted
        self._report_if_late(self._watching)

    def _note_usual_events(self) -> None:
        """Note the bytes that inotify returns after an append or a commit, so that these need no parsing."""
        watches = [watch for watch in (self._file_watch, self._mark.watch) if watch >= 0]
        events = [watch.to_bytes(4, "little") + _MODIFY.to_bytes(4, "little") + bytes(8) for watch in watches]
        both = [b"".join(events), b"".join(reversed(events))]
        self._usual_events = tuple(dict.fromkeys(events + both))

    def _look_after_mark(self) -> None:
        """Reopen the mark if its name belongs to another file by now."""
        if self._mark.has_gone():
            # In this order: a mark that appears in between is found by one of the two.
            self._watching()
            self._look_for_names()

    # --- events

    def _on_events(self, _mask: int) -> None:
        try:
            data = os.read(self._inotify_fd, EVENTS_BYTES)
        except BlockingIOError:
            return
        if data not in self._usual_events:
            try:
                data += self._more_events()
                self._on_unusual(data)
            except FatalError as error:
                self._failed(error)
                return
            if self._is_closed:
                return
        self.refresh()
        self._changed()

    def _more_events(self) -> bytes:
        """All further events, so that one wake-up handles all."""
        try:
            return os.read(self._inotify_fd, MORE_EVENTS_BYTES)
        except BlockingIOError:
            return b""

    def _on_unusual(self, data: bytes) -> None:
        """Handle events other than an append or a commit alone: names, an overflow, several at once."""
        gone = look = False
        for event in parse_events(data):
            if event.mask & _OVERFLOW:
                # Events were lost: check everything that they could have reported.
                look = gone = True
                self._look_after_mark()
            elif event.wd == self._directory_watch:
                if event.mask & _DIRECTORY_LOST:
                    self._names_asked = 0
                    look = gone = True  # and the file with it, perhaps
                look = look or event.name in {self._name, self._name + SUFFIX}
            elif event.wd == self._mark.watch and event.mask & ~_MODIFY:
                self._look_after_mark()
            elif event.wd == self._file_watch and event.mask & ~_MODIFY:
                gone = True
        if look:
            self._look_for_names()
        if gone:
            self._look_whether_gone()

    def _look_whether_gone(self) -> None:
        """Report the file as gone if `path` no longer names it; ATTRIB also means changed permissions."""
        if self.fd >= 0 and not self._is_gone and not is_named(self.fd, self.path):
            self._is_gone = True
            self.refresh()
            self._gone()

    def _on_poll(self) -> None:
        self._poll_timer = None
        before = self.end
        try:
            self._look_for_names()
            self._look_after_mark()
        except FatalError as error:
            self._failed(error)
            return
        self._look_whether_gone()
        if self._is_closed:
            return
        self.refresh()
        if self.end != before:
            self._changed()
        self._schedule_poll()

    def _schedule_poll(self) -> None:
        if self._poll_seconds is not None and not self._is_closed:
            self._poll_timer = self._reactor.call_later(self._poll_seconds, self._on_poll)


def _exists(path: str) -> bool:
    """Whether `path` exists, also as a dangling symbolic link."""
    return os.access(path, os.F_OK, follow_symlinks=False)
