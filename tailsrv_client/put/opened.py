"""The files that are followed: each is opened once, whatever it is called meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tailsrv_client.put.beside import rotated_names
from tailsrv_client.put.followed import FollowedFile, Identity, identify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collator.framing import Framing


class OpenedFiles:
    """What was opened of `path` and of what rotation made of it."""

    def __init__(self, path: str, framing: Framing) -> None:
        self._path, self._framing = path, framing
        self._open = set[Identity]()
        self._done = dict[Identity, bytes]()
        """Those that are dealt with, and how they began: another file may be given their inodes."""

    def open(self, path: str) -> FollowedFile | None:
        """The file called `path`, if it is there and neither open nor dealt with."""
        file = self.look(path)
        if file is None:
            return None
        known = self._done.get(file.identity)
        if file.identity in self._open or (known and file.beginning().startswith(known)):
            file.close()
            return None
        self._open.add(file.identity)
        return file

    def look(self, path: str) -> FollowedFile | None:
        """The file called `path`, if it is there: opened once more, for the caller to close."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        return FollowedFile(fd, self._framing)

    def close(self, file: FollowedFile) -> None:
        """It is dealt with."""
        self._done[file.identity] = file.beginning()
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
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
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
