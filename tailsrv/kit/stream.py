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

from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.files import open_regular
from tailsrv.kit.mark import SUFFIX, MarkReader
from tailsrv.kit.reactor import READ
from tailsrv.kit.shortage import Retried, ShortageError, is_shortage
from tailsrv.kit.watches import Watches, flags, parse_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv.kit.logs import Log
    from tailsrv.kit.reactor import Reactor, Timer

UNCOMMITTED_SECONDS: Final = 5.0
"""Bytes that stay beyond the mark for so long are worth a line in the log."""

EVENTS_BYTES: Final = 16 + 255 + 1
"""Read at first: room for the longest event (inotify(7)), or for more appends than mostly come between two looks."""
MORE_EVENTS_BYTES: Final = 1 << 16

# Plain numbers: combining the enumeration's members costs microseconds, and these are compared on every append.
_MODIFY: Final = int(flags.MODIFY)
_OVERFLOW: Final = int(flags.Q_OVERFLOW)
_FILE_EVENTS: Final = int(flags.MODIFY | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF)
_ITSELF: Final = int(flags.MOVE_SELF | flags.DELETE_SELF)
_NO_NAMES: Final = int(flags.ONLYDIR) | _ITSELF
"""What is asked of the directory while the file and the mark are open,"""
_NEW_NAMES: Final = int(flags.CREATE | flags.MOVED_TO) | _NO_NAMES
"""while one of them is missing,"""
_ALL_NAMES: Final = int(flags.ATTRIB | flags.DELETE | flags.MOVED_FROM) | _NEW_NAMES
"""and while there is a mark that can't be used."""
_DIRECTORY_LOST: Final = int(flags.IGNORED | flags.UNMOUNT) | _ITSELF

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


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
        self._mark: MarkReader | None = None
        self._is_open = self._is_closed = self._is_gone = False
        self._file_watch = self._mark_watch = self._directory_watch = -1
        self._names_asked = 0  # what the directory is watched for at the moment
        self._usual_events: tuple[bytes, ...] = ()
        self._watches = Watches()
        self._inotify_fd = self._watches.fd
        self._opening = Retried(reactor, log, "opening the file", self._open_file, file=path)
        self._opening_mark = Retried(reactor, log, "opening the commit mark", self._open_mark, file=self._mark_path)
        self._watching = Retried(reactor, log, "watching the directory", self._watch_names, file=path)
        self._mark_problem: str | None = None
        self._was_no_mark = False  # what could not be used was no file at all: the stream has no mark once it is gone
        self._poll_timer: Timer | None = None
        self._uncommitted_timer: Timer | None = None
        self._uncommitted_since: int | None = None
        self._told_uncommitted = False

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
        for timer in (self._poll_timer, self._uncommitted_timer):
            if timer is not None:
                timer.cancel()
        self._reactor.unregister(self._inotify_fd)
        self._watches.close()
        if self._mark is not None:
            self._mark.close()
            self._mark = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def refresh(self) -> None:
        """Look at the size and the mark now, and set `end`. Cheap: one lseek, one pread."""
        if self.fd < 0:
            return
        size = os.lseek(self.fd, 0, os.SEEK_END)  # a quarter of what fstat's result costs to build
        if size < self.size:
            self.has_shrunk = True
            self._log.warning("file truncated", file=self.path, size=size, was=self.size)
        self.size = size
        if self._mark is not None:
            self._read_mark(self._mark)
        if self.committed is None:
            self.end = size
            return
        self.end = min(self.committed, size)
        if self.end == size:
            self._told_uncommitted = False
            if self._uncommitted_timer is not None:
                self._uncommitted_timer.cancel()  # idle means idle: not even one late look
                self._uncommitted_timer = None
        elif self._uncommitted_timer is None and not self._told_uncommitted:
            self._await_commit()

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
        if paused is None and self._mark_problem is not None:
            return f"{self._mark_path} cannot be used: {self._mark_problem}; nothing beyond byte {self.end} is sent"
        return paused

    # --- the file and its mark appear

    def _open_file(self) -> None:
        try:
            self.fd, self._file_watch = self._open_watched(self.path)
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
        try:
            fd, self._mark_watch = self._open_watched(self._mark_path)
        except FileNotFoundError:
            if os.path.islink(self._mark_path):
                self._cannot_use_mark("a symbolic link to nothing", was_no_mark=True)
            else:
                self._no_mark()
        except OSError as error:
            if is_shortage(error):
                self._hold_end()
                raise
            self._cannot_use_mark(reason(error), was_no_mark=error.errno == errno.EINVAL)
        else:
            self._mark, self._mark_problem = MarkReader(fd), None
            self._note_usual_events()
        self._tell_if_late(self._opening_mark)

    def _open_watched(self, path: str) -> tuple[int, int]:
        """Open a regular file and watch it; its descriptor, and the watch's number."""
        while True:
            fd = open_regular(path)
            try:
                # By descriptor: the name may mean another file by now. If it does, no event will say so.
                watch = self._watches.add(f"/proc/self/fd/{fd}", _FILE_EVENTS)
                if _is_named(fd, path):
                    return fd, watch
            except FileNotFoundError:
                os.close(fd)
                raise FatalError(f"cannot watch {path}: there is no /proc/self/fd; mount /proc") from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _tell_if_late(self, retried: Retried) -> None:
        """What has just succeeded had been paused: no event is being handled whose end would tell the readers."""
        if retried.paused is not None:
            self._reactor.call_later(0, self._look_again)

    def _look_again(self) -> None:
        if not self._is_closed:
            self._look_for_names()
            self.refresh()
            self._changed()

    def _look_for_names(self) -> None:
        if self.fd < 0 and _exists(self.path):
            self._opening()
        if self._use_mark and self._mark is None and not self._is_gone:
            held = self._mark_problem is not None or self._opening_mark.paused is not None
            if held or _exists(self._mark_path):
                self._opening_mark()
        if self._names_wanted() != self._names_asked:
            self._watching()

    def _is_missing(self) -> bool:
        """Whether there is a name to look for."""
        return self.fd < 0 or (self._use_mark and self._mark is None and not self._is_gone)

    def _names_wanted(self) -> int:
        if not self._is_missing():
            return _NO_NAMES
        return _NEW_NAMES if self._mark_problem is None else _ALL_NAMES

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
        watches = [watch for watch in (self._file_watch, self._mark_watch) if watch >= 0]
        events = [watch.to_bytes(4, "little") + _MODIFY.to_bytes(4, "little") + bytes(8) for watch in watches]
        both = [b"".join(events), b"".join(reversed(events))]
        self._usual_events = tuple(dict.fromkeys(events + both))

    # --- what the mark says, or does not

    def _read_mark(self, mark: MarkReader) -> None:
        try:
            committed = mark.read()
        except OSError as error:
            self._cannot_use_mark(reason(error), was_no_mark=False)
            return
        if committed is not None:
            self.committed = committed
        elif self.committed is None:
            self.committed = 0  # it has just been created; an older one holds until this one has a valid line
        self._mark_problem = None

    def _cannot_use_mark(self, problem: str, *, was_no_mark: bool) -> None:
        advice = "make it a readable file, remove it, or give --no-commit-mark"
        if not self._is_open:
            raise FatalError(f"cannot use {self._mark_path}: {problem}; {advice}")
        if problem != self._mark_problem:
            self._log.warning("commit mark unusable", file=self._mark_path, error=problem, end=self.end, advice=advice)
        self._was_no_mark = was_no_mark and (self.committed is None or self._was_no_mark)
        self._mark_problem = problem
        self._hold_end()

    def _hold_end(self) -> None:
        """There is a mark, and it can't be read: what has been shown may be shown, and nothing more."""
        if self.committed is None:
            self.committed = self.end

    def _no_mark(self) -> None:
        """Nothing bears the mark's name. What a mark said last goes on to hold until there is a new one."""
        if self._mark_problem is not None:
            self._mark_problem = None
            if self._was_no_mark:
                self.committed, self._was_no_mark = None, False

    def _mark_lost(self) -> None:
        if self._mark is None or _is_named(self._mark.fd, self._mark_path):
            return
        self._log.warning("commit mark gone", file=self._mark_path, committed=self.committed)
        self._watches.remove(self._mark_watch)
        self._mark.close()
        self._mark, self._mark_watch = None, -1
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
                self._mark_lost()
            elif event.wd == self._directory_watch:
                if event.mask & _DIRECTORY_LOST:
                    self._names_asked = 0
                    look = True
                look = look or event.name in {self._name, self._name + SUFFIX}
            elif event.wd == self._mark_watch and event.mask & ~_MODIFY:
                self._mark_lost()
            elif event.wd == self._file_watch and event.mask & ~_MODIFY:
                gone = True
        if look:
            self._look_for_names()
        if gone:
            self._look_whether_gone()

    def _look_whether_gone(self) -> None:
        """Notice a file that is no longer what its name means; changed permissions are not that."""
        if self.fd >= 0 and not self._is_gone and not _is_named(self.fd, self.path):
            self._is_gone = True
            self.refresh()
            self._gone()

    def _on_poll(self) -> None:
        self._poll_timer = None
        try:
            self._look_for_names()
            self._mark_lost()
        except FatalError as error:
            self._failed(error)
            return
        self._look_whether_gone()
        if self._is_closed:
            return
        before = self.end
        self.refresh()
        if self.end != before:
            self._changed()
        self._schedule_poll()

    def _schedule_poll(self) -> None:
        if self._poll_seconds is not None and not self._is_closed:
            self._poll_timer = self._reactor.call_later(self._poll_seconds, self._on_poll)

    def _await_commit(self) -> None:
        self._uncommitted_since = self.committed
        self._uncommitted_timer = self._reactor.call_later(UNCOMMITTED_SECONDS, self._on_uncommitted)

    def _on_uncommitted(self) -> None:
        self._uncommitted_timer = None
        if self.end == self.size:
            return
        if self.committed != self._uncommitted_since:
            self._await_commit()  # commits go on: a busy stream always has some bytes on their way
            return
        self._told_uncommitted = True
        self._log.warning(
            "uncommitted bytes",
            file=self.path,
            committed=self.committed,
            size=self.size,
            advice="start its collator, or give --no-commit-mark if it has none",
        )


def _exists(path: str) -> bool:
    """Whether there is anything of this name, a link to nothing included."""
    return os.access(path, os.F_OK, follow_symlinks=False)


def _is_named(fd: int, path: str) -> bool:
    """Whether `path` still means the open file `fd`, as far as can be told."""
    try:
        ours = os.fstat(fd)
        return ours.st_nlink > 0 and os.path.samestat(ours, os.stat(path))
    except OSError as error:
        return error.errno not in _GONE
