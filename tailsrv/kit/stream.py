"""A growing file as its readers see it: how far it may be read, and when that changes.

The end of a stream is the smaller of its commit mark and its size; without a mark, its size. The kernel says when
either changes (inotify): no polling, and nothing happens while nothing happens. Names are watched too: a file or mark
that does not exist yet is taken up when it appears, and one that is moved or deleted is noticed.

Knows nothing of messages, sockets or clients.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from inotify_simple import INotify, flags, parse_events

from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.mark import SUFFIX, MarkReader
from tailsrv.kit.reactor import READ

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
_DIRECTORY_EVENTS: Final = int(flags.CREATE | flags.MOVED_TO | flags.ONLYDIR)


class Stream:
    """Watches the file at `path`, whose readers are told through three callbacks.

    `changed()` when `end` may have moved (it is up to date then), also backwards; `gone()` once, when the file was
    moved or deleted: `fd` stays readable. `failed(error)` when the file appeared but can't be served.
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
        self.path = path
        self.fd = -1
        """The open file; -1 while there is none."""
        self.end = 0
        """How far consumers may read, in bytes. 0 while there is no file."""
        self.size = 0
        """The file's size when last looked at, in bytes."""
        self.committed: int | None = None
        """What the mark says, in bytes; None without one."""

        self._reactor = reactor
        self._log = log
        self._changed = changed
        self._gone = gone
        self._failed = failed
        self._use_mark = use_mark
        self._poll_seconds = poll_seconds
        self._directory, self._name = os.path.split(path)
        self._mark: MarkReader | None = None
        self._is_gone = False
        self._file_watch = self._mark_watch = self._directory_watch = -1
        self._usual_events: tuple[bytes, ...] = ()
        self._inotify = _new_inotify()
        self._inotify_fd = self._inotify.fileno()
        self._uncommitted_timer: Timer | None = None
        self._uncommitted_since: int | None = None
        self._told_uncommitted = False

    def open(self) -> None:
        """Begin to watch; a missing file is waited for. Raises `FatalError` for one that can't be served."""
        self._directory_watch = self._watch(self._directory or ".", _DIRECTORY_EVENTS)
        self._open_file()
        if self._use_mark:
            self._open_mark()
        self._reactor.register(self._inotify_fd, READ, self._on_events)
        if self.fd < 0:
            self._log.info("waiting for the file", file=self.path)
        self.refresh()
        self._schedule_poll()

    def close(self) -> None:
        """Stop watching and close the file."""
        self._reactor.unregister(self._inotify_fd)
        self._inotify.close()
        if self._uncommitted_timer is not None:
            self._uncommitted_timer.cancel()
        if self._mark is not None:
            self._mark.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def refresh(self) -> None:
        """Look at the size and the mark now, and set `end`. Cheap: one lseek, one pread."""
        if self.fd < 0:
            return
        size = os.lseek(self.fd, 0, os.SEEK_END)  # a quarter of what fstat's result costs to build
        if size < self.size:
            self._log.warning("file truncated", file=self.path, size=size, was=self.size)
        self.size = size
        if self._mark is not None:
            # A mark without a valid line says nothing new; one that has just been created says nothing at all.
            self.committed = self._mark.read() or self.committed or 0
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

    # --- the file and its mark appear

    def _open_file(self) -> None:
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for its writer.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FatalError(f"cannot read {self.path}: {reason(error)}; make it readable for this user") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FatalError(f"{self.path} is not a regular file; a stream is a file that grows")
        self.fd = fd
        # By descriptor: the name may mean another file by now.
        self._file_watch = self._watch(f"/proc/self/fd/{fd}", _FILE_EVENTS)
        self._note_usual_events()

    def _open_mark(self) -> None:
        if self._mark is not None:
            return
        try:
            self._mark = MarkReader(self.path + SUFFIX)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FatalError(
                f"cannot read {self.path + SUFFIX}: {reason(error)}; make it readable, or give --no-commit-mark"
            ) from None
        self._mark_watch = self._watch(f"/proc/self/fd/{self._mark.fd}", _FILE_EVENTS)
        self._note_usual_events()

    def _watch(self, path: str, events: int) -> int:
        try:
            watch: int = self._inotify.add_watch(path, events)
        except OSError as error:
            advice = "the stream's directory has to exist"
            if error.errno == errno.ENOSPC:
                advice = "raise fs.inotify.max_user_watches"
            raise FatalError(f"cannot watch {path}: {reason(error)}; {advice}") from None
        return watch

    def _note_usual_events(self) -> None:
        """The bytes that inotify returns after an append or a commit, so that they need no parsing."""
        watches = [watch for watch in (self._file_watch, self._mark_watch) if watch >= 0]
        events = [watch.to_bytes(4, "little") + _MODIFY.to_bytes(4, "little") + bytes(8) for watch in watches]
        both = [b"".join(events), b"".join(reversed(events))]
        self._usual_events = tuple(dict.fromkeys(events + both))

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
        gone = False
        for event in parse_events(data):
            if event.mask & _OVERFLOW:
                # Events were lost; whatever they said can be seen by looking.
                self._look_for_names()
                gone = gone or self._has_gone()
            elif event.wd == self._directory_watch and event.name in {self._name, self._name + SUFFIX}:
                self._look_for_names()
            elif event.wd == self._mark_watch and event.mask & ~_MODIFY:
                self._mark_lost()
            elif event.wd == self._file_watch and event.mask & ~_MODIFY:
                gone = gone or self._has_gone()
        if gone and not self._is_gone:
            self._is_gone = True
            self.refresh()
            self._gone()

    def _look_for_names(self) -> None:
        if self.fd < 0:
            self._open_file()
            if self.fd >= 0:
                self._log.info("the file appeared", file=self.path)
        if self._use_mark and not self._is_gone:
            self._open_mark()

    def _has_gone(self) -> bool:
        """Whether the open file is no longer what its name means; changed permissions are not that."""
        if self.fd < 0:
            return False
        ours = os.fstat(self.fd)
        if ours.st_nlink == 0:
            return True
        try:
            named = os.stat(self.path)
        except OSError:
            return True
        return not os.path.samestat(ours, named)

    def _mark_lost(self) -> None:
        """The mark was moved or deleted: what it said last goes on to hold until there is a new one."""
        if self._mark is None or (os.fstat(self._mark.fd).st_nlink and os.path.exists(self.path + SUFFIX)):
            return
        self._log.warning("commit mark gone", file=self.path + SUFFIX, committed=self.committed)
        self._mark.close()
        self._mark, self._mark_watch = None, -1
        self._open_mark()

    def _on_poll(self) -> None:
        try:
            self._look_for_names()
        except FatalError as error:
            self._failed(error)
            return
        if not self._is_gone and self._has_gone():
            self._is_gone = True
            self._gone()
        before = self.end
        self.refresh()
        if self.end != before:
            self._changed()
        self._schedule_poll()

    def _schedule_poll(self) -> None:
        if self._poll_seconds is not None:
            self._reactor.call_later(self._poll_seconds, self._on_poll)

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


def _new_inotify() -> INotify:
    try:
        return INotify(nonblocking=True)
    except OSError as error:
        raise FatalError(f"cannot watch files: {reason(error)}; raise fs.inotify.max_user_instances") from None
