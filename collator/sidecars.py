"""The journal and the commit mark (the sidecar files) while the collator runs.

Producers and consumers rely on these two files, and the collator knows their whole content. When another program
removes, moves or replaces one, inotify reports it, and the collator writes it again from memory before it acknowledges
anything more. It also writes a smaller journal when the journal has grown (compaction).

In both cases the loop opens the temporary files, because descriptors are reserved for it, and a worker writes them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from collator.startup import GONE_EVENTS
from collator.streamfile import is_other
from tailsrv_formats.commit_mark import SUFFIX as MARK_SUFFIX
from tailsrv_formats.commit_mark import encode_line
from tailsrv_runtime.commit_mark import MarkWriter
from tailsrv_runtime.directory import NewFile
from tailsrv_runtime.shortage import Retried, spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from collator.journal import Standing
    from collator.recovery import Recovered
    from collator.streamfile import StreamFile
    from tailsrv_formats.journal import Record
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor
    from tailsrv_runtime.watches import Watches


class Sidecars:
    """The journal and the commit mark of one stream, after its recovery."""

    def __init__(
        self,
        reactor: Reactor,
        file: StreamFile,
        recovered: Recovered,
        watches: Watches,
        *,
        log: Log,
        noticed: Callable[[], None],
    ) -> None:
        """``noticed()`` is called in the loop when a file is found missing without an inotify event."""
        self._reactor = reactor
        self._noticed = noticed
        self.journal = recovered.journal
        self.mark = recovered.mark
        self._directory = file.directory
        self._path = file.path
        self._mark_name = file.name + MARK_SUFFIX
        self._watches = watches
        self._log = log
        self._new: dict[str, NewFile] = {}
        self._new_mark: MarkWriter | None = None
        self.lost: set[str] = set()
        """The names that do not mean our files any more."""
        self._watch = Retried(
            reactor, log, "watching the journal and the commit mark", self._watch_both, file=file.path
        )
        self._watch()

    # --- looking

    def _watch_both(self) -> None:
        for fd in (self.journal.fd, self.mark.fd):
            # By descriptor: the name may mean another file by now.
            self._watches.add(f"/proc/self/fd/{fd}", GONE_EVENTS)
        if self.look():
            self._reactor.call_later(0, self._noticed)

    def look(self) -> bool:
        """Compare names and files. Returns whether more of them are missing than before."""
        before = set(self.lost)
        for name, fd in ((self.journal.name, self.journal.fd), (self._mark_name, self.mark.fd)):
            if is_other(fd, name, self._directory):
                self.lost.add(name)
        for name in self.lost - before:
            self._log.error(
                "sidecar file missing",
                file=os.path.join(os.path.dirname(self._path), name),
                advice="the collator rewrites it from memory; stop the collator before you move or delete its files",
            )
        return self.lost != before

    def move_mark(self, length: int) -> None:
        """Let consumers read up to byte `length`. Raises `OSError`; the commit mark is then where it was."""
        self.mark.move(length)

    # --- writing

    @property
    def is_open(self) -> bool:
        """Whether the temporary files for `replace` are open."""
        return all(name in self._new for name in {self.journal.name} | self.lost)

    def open(self) -> None:
        """Open them, in the loop. Raises `OSError`; the files that are open stay open for the next attempt."""
        with spare_descriptors():
            for name in {self.journal.name} | self.lost:
                if name not in self._new:
                    self._new[name] = NewFile(self._directory, name)

    def unwatch(self) -> None:
        """Look at the names no more until `replaced`: a worker is about to exchange the files."""
        self._watch.cancel()

    def replace(self, first: Record, producers: Sequence[Standing]) -> None:
        """Write a new journal and, if it is missing, a new commit mark. Runs on a worker while nothing is committed.

        Raises `OSError`, after which the caller may begin again with `open`; or `SyncFailedError`.
        """
        self.journal.rewrite(self._new.pop(self.journal.name), first, producers)
        mark = self._new.pop(self._mark_name, None)
        if mark is not None:  # after the journal: consumers may only see bytes that the journal records
            self._new_mark = MarkWriter(mark.put(encode_line(first.end) * 2), first.end)
            self._directory.sync()

    def replaced(self, *, failed: bool) -> None:
        """In the loop, after `replace`: use the new files, and watch them."""
        if self._new_mark is not None:
            self.mark.close()
            self.mark, self._new_mark = self._new_mark, None
        if not failed:
            lost, self.lost = self.lost, set()
            for name in lost:
                self._log.info("sidecar file rewritten", file=name)
        self._watch()

    def close(self) -> None:
        """Close both files, which stay on the disk."""
        self._watch.cancel()
        for new in self._new.values():
            new.discard()
        self.journal.close()
        self.mark.close()
