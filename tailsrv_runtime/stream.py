"""A growing file as its readers see it: how far it may be read, and when that changes.

The end of a stream is the smaller of its commit mark and its size; without a mark, its size. The kernel says when
either changes (inotify): no polling, and nothing happens while nothing happens. Names are watched too: a file or mark
that does not exist yet is taken up when it appears, and one that is moved or deleted is noticed. The directory's other
names are of interest only while the file or the mark is missing; at other times they wake nobody.

From the moment that the mark exists, nothing beyond it is shown. While it can't be read, because descriptors have run
out or because it is something else than a readable file, the end stays where it was.

Knows nothing of messages, sockets or clients.
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
from tailsrv_runtime.watchedmark import WatchedMark
from tailsrv_runtime.watches import Watches, flags, is_named, parse_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

EVENTS_BYTES: Final = 16 + 255 + 1
"""Read at first: room for the longest event (inotify(7)), or for more appends than mostly come between two looks."""
MORE_EVENTS_BYTES: Final = 1 << 16

# Plain numbers: combining the enumeration's members costs microseconds, and these are compared on every append.
_MODIFY: Final = int(flags.MODIFY)
_OVERFLOW: Final = int(flags.Q_OVERFLOW)
_ITSELF: Final = int(flags.MOVE_SELF | flags.DELETE_SELF)
_NO_NAMES: Final = int(flags.ONLYDIR) | _ITSELF
"""What is asked of the directory while the file and the mark are open,"""
_NEW_NAMES: Final = int(flags.CREATE | flags.MOVED_TO) | _NO_NAMES
"""while one of them is missing,"""
_ALL_NAMES: Final = int(flags.ATTRIB | flags.DELETE | flags.MOVED_FROM) | _NEW_NAMES
"""and while there is a mark that can't be used."""
_DIRECTORY_LOST: Final = int(flags.IGNORED | flags.UNMOUNT) | _ITSELF


class Stream:
    """Watches the file at `path`, whose readers are told through three callbacks.

    `changed()` when `end` may have moved (it is up to date then), also backwards; `gone()` once, when the file was
    moved or deleted: `fd` stays readable. `failed(error)` when the file appeared but can't be served. A callback may
    close the stream.
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
        """Raises `OSError` for a shortage (see `shortage`): the caller may try again later."""
        self.path = path
        self.fd = -1
        """The open file; -1 while there is none."""
        self.end = 0
        """How far consumers may read, in bytes. 0 while there is no file."""
        self.size = 0
        """The file's size when last looked at, in bytes."""
        self.committed: int | None = None
        """What the mark says, in bytes; None without one. While it can't be read: where the end was before."""
        self.has_shrunk = False
        """Whether the file has ever been seen to become shorter."""

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
        self._names_asked = 0  # what the directory is watched for at the moment
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
        """Begin to watch; a missing file is waited for.

        Raises `FatalError` for a file or a mark that can't be served, `OSError` for a shortage.
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
        """Look at the size and the mark now, and set `end`. Cheap: one lseek, one pread."""
        if self.fd < 0:
            return
        try:
            size = os.lseek(self.fd, 0, os.SEEK_END)  # a quarter of what fstat's result costs to build
        except OSError as error:
            self._cannot_look(error)
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

    def _cannot_look(self, error: OSError) -> None:
        """The file's server has forgotten it, or the disk fails: the end stays where it was."""
        if self._file_problem is None:
            self._log.warning("file cannot be looked at", file=self.path, error=reason(error), end=self.end)
        self._file_problem = reason(error)

    def look(self) -> None:
        """As `refresh`, and look for names whose appearance the kernel has not told yet.

        It is for answers that depend on where the end is now; a system call more than `refresh` for each missing name.
        """
        if self._is_missing():
            self._look_for_names()
        self.refresh()

    def unhealthy(self) -> str | None:
        """Why the stream can't be followed at the moment; None when it can."""
        paused = self._opening.paused or self._opening_mark.paused or self._watching.paused
        if paused is None and self.fd < 0:
            return f"{self.path} does not exist yet"
        if paused is None and self._file_problem is not None:
            return f"{self.path} cannot be looked at: {self._file_problem}"
        if paused is None and self._mark.problem is not None:
            return f"{self._mark_path} cannot be used: {self._mark.problem}; nothing beyond byte {self.end} is sent"
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
                text = f"{self.path} is not a regular file; a stream is a file that grows"
            else:
                text = f"cannot read {self.path}: {reason(error)}; make it readable for this user"
            raise FatalError(text) from None
        self._note_usual_events()
        if self._is_open:
            self._log.info("the file appeared", file=self.path)
        self._tell_if_late(self._opening)

    def _open_mark(self) -> None:
        self._mark.open(self.end, is_start=not self._is_open)
        self._note_usual_events()
        self._tell_if_late(self._opening_mark)

    def _tell_if_late(self, retried: Retried) -> None:
        """What has just succeeded had been paused: no event is being handled whose end would tell the readers."""
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
        """Whether there is a name to look for."""
        return self.fd < 0 or (self._use_mark and self._mark.reader is None and not self._is_gone)

    def _names_wanted(self) -> int:
        if not self._is_missing():
            return _NO_NAMES
        return _NEW_NAMES if self._mark.problem is None else _ALL_NAMES

    def _watch_names(self) -> None:
        """Ask the directory for as much as is needed now."""
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
                text = f"cannot watch {error.filename}: {reason(error)}; the stream's directory has to exist"
                raise FatalError(text) from None
            self._names_asked = 0
            raise ShortageError(error, reason(error), "the stream's directory has to exist") from None
        self._names_asked = wanted
        self._tell_if_late(self._watching)

    def _note_usual_events(self) -> None:
        """The bytes that inotify returns after an append or a commit, so that they need no parsing."""
        watches = [watch for watch in (self._file_watch, self._mark.watch) if watch >= 0]
        events = [watch.to_bytes(4, "little") + _MODIFY.to_bytes(4, "little") + bytes(8) for watch in watches]
        both = [b"".join(events), b"".join(reversed(events))]
        self._usual_events = tuple(dict.fromkeys(events + both))

    def _look_after_mark(self) -> None:
        """The mark's name may mean something else by now."""
        if self._mark.has_gone():
            # First the watch, then the look: what appears in between is seen by one of them.
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
        """All that are left; a wake-up takes them all at once."""
        try:
            return os.read(self._inotify_fd, MORE_EVENTS_BYTES)
        except BlockingIOError:
            return b""

    def _on_unusual(self, data: bytes) -> None:
        """Names came or went, the queue overflowed, or several things happened at once."""
        gone = look = False
        for event in parse_events(data):
            if event.mask & _OVERFLOW:
                # Events were lost; whatever they said can be seen by looking.
                look = gone = True
                self._look_after_mark()
            elif event.wd == self._directory_watch:
                if event.mask & _DIRECTORY_LOST:
                    self._names_asked = 0
                    look = gone = True  # the file went with it, perhaps
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
        """Notice a file that is no longer what its name means; changed permissions are not that."""
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
    """Whether there is anything of this name, a link to nothing included."""
    return os.access(path, os.F_OK, follow_symlinks=False)
