"""The files that are followed: each is opened once, whatever it is called meanwhile."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from tailsrv_client.put.followed_file import FollowedFile, Identity, identify
from tailsrv_client.put.rotated_files import rotated_names
from tailsrv_formats.errors import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_formats.framing import Framing


class OpenedFiles:
    """What was opened of `path` and of what rotation made of it."""

    def __init__(self, path: str, framing: Framing, on_event: Callable[[str], None]) -> None:
        """`on_event` is called with a report of each file that cannot be read."""
        self._path, self._framing, self._on_event = path, framing, on_event
        self._open = set[Identity]()
        self._done = dict[Identity, tuple[int | None, bytes]]()
        """Those that are dealt with: how long they were, and how they began: another file may be given their inodes.

        None: whatever is appended to them.
        """
        self.unreadable: set[str] = set[str]()
        """The paths of files that are there and could not be opened."""

    def open(self, path: str) -> FollowedFile | None:
        """The file called `path`, if it is there and not open. What is dealt with is opened again if it has grown.

        What FILE is may grow again at any time: it is opened again in any case.
        """
        file = self.look(path)
        if file is None:
            return None
        if file.identity in self._open or (path != self._path and self._is_done(file)):
            file.close()
            return None
        self._open.add(file.identity)
        file.was_rotated = file.identity in self._done
        return file

    def _is_done(self, file: FollowedFile) -> bool:
        known = self._done.get(file.identity)
        if known is None:
            return False
        size, beginning = known
        return size in {None, file.size} and file.beginning().startswith(beginning)

    def look(self, path: str) -> FollowedFile | None:
        """The file called `path`, if it is there and can be read: opened once more, for the caller to close."""
        fd = self._descriptor(path)
        return None if fd is None else FollowedFile(fd, self._framing)

    def _descriptor(self, path: str) -> int | None:
        """A descriptor of the file; None if it is missing or unreadable. An unreadable file is reported once."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self.unreadable.discard(path)
            return None
        except PermissionError as error:
            self._report_unreadable(path, reason(error))
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            self._report_unreadable(path, "not a regular file")
            return None
        self.unreadable.discard(path)
        return fd

    def _report_unreadable(self, path: str, why: str) -> None:
        if path not in self.unreadable:
            self.unreadable.add(path)
            self._on_event(f"{path}: cannot be read ({why}); make it readable, and it is sent without a restart")

    def close(self, file: FollowedFile, *, for_good: bool = False) -> None:
        """It is dealt with; `for_good`: also if it grows."""
        self._done[file.identity] = None if for_good else file.size, file.beginning()
        self.put_back(file)

    def put_back(self, file: FollowedFile) -> None:
        """It may be opened again."""
        self._open.discard(file.identity)
        file.close()

    def forget_deleted(self) -> None:
        """Forget those that are no longer there: their inodes are free for other files."""
        there = set(self._inodes())
        for identity in [one for one in self._done if (one.device, one.inode) not in there]:
            del self._done[identity]

    def live(self) -> Identity | None:
        """What `path` is at present."""
        fd = self._descriptor(self._path)
        if fd is None:
            return None
        try:
            return identify(fd)
        finally:
            os.close(fd)

    def _inodes(self) -> Iterator[tuple[int, int]]:
        for name in (self._path, *rotated_names(self._path)):
            try:
                status = os.stat(name)
            except FileNotFoundError:
                continue
            yield status.st_dev, status.st_ino
