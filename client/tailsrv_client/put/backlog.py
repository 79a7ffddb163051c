"""Finds what rotation did to a file while this command did not run: from the files next to it and their ACKED."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.put.followed_file import Tail
from tailsrv_client.put.resume_points import (
    Names,
    ResumePoint,
    SearchResult,
    find_later,
    find_originals,
    find_resume_point,
)
from tailsrv_client.put.rotated_files import compressed_names, rotated_names
from tailsrv_client.put.shipment import Shipment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_client.put.followed_file import FollowedFile
    from tailsrv_client.put.opened_files import OpenedFiles

UNSURE_SECONDS: Final = 10.0
"""A rotated file without writes for this long is complete, where the kernel cannot say whether it has a writer."""


class Backlog:
    """The rotated files of `path`, whose producers are called after `base`. `ask`: what is acknowledged of a name."""

    def __init__(
        self, files: OpenedFiles, path: str, base: str, ask: Callable[[str], int], on_event: Callable[[str], None]
    ) -> None:
        self._files, self._path, self._base = files, path, base
        self._ask, self._on_event = ask, on_event
        self._known = 0
        """When the newest file of which something was sent was last written to, in nanoseconds."""
        self._copied = dict[str, Tail]()
        """The producers of contents that have a copy, and the bytes where these ended."""

    def look_at_live(self) -> None:
        """At the start: see when what was sent of FILE was written."""
        live = self._files.look(self._path)
        if live is not None:
            found = self.find(live, rotated=False)
            if found is not None and not found.is_new and not found.replaced:
                self._known = os.fstat(live.fd).st_mtime_ns
            live.close()

    def find(self, file: FollowedFile, *, rotated: bool) -> SearchResult | None:
        """Where to go on with a file of ours; None while its first message is not complete."""
        names = Names(self._base, file.identity)
        found = find_resume_point(file, names, self._ask, rotated=rotated)
        if found is not None and not self._may_be(file, found.resume_point):
            return find_later(file, names, self._ask)
        return found

    def _may_be(self, file: FollowedFile, resume_point: ResumePoint) -> bool:
        """False when a copy shows that what was sent under this name was something else."""
        return resume_point.name not in self._copied or file.holds(self._copied[resume_point.name])

    def shipments(self, *, ignore_unknown: bool = False) -> Iterator[Shipment]:
        """Those of the rotated files that are neither open nor dealt with, the oldest first."""
        for path in rotated_names(self._path):
            shipment = self.shipment(path, ignore_unknown=ignore_unknown)
            if shipment is not None:
                yield shipment

    def shipment(self, path: str, *, ignore_unknown: bool = False) -> Shipment | None:
        """The rotated file called `path`, unless it is open or dealt with, or a copy of what FILE holds."""
        file = self._files.open(path)
        if file is None:
            return None
        found = self.find(file, rotated=True)
        if found is None and not ignore_unknown:
            return Shipment(file, path)
        if found is not None and found.is_new:
            found, held = self._original(file, path, None if ignore_unknown else found)
            if held:
                self._files.put_back(file)
                return None
        if found is not None and found.resume_point.offset:
            self._known = max(self._known, os.fstat(file.fd).st_mtime_ns)
        if found is None or is_done(file, found.resume_point.offset):
            self._files.close(file, for_good=found is None)  # then it is to be ignored
            return None
        report_result(found, file, path, self._on_event)
        return Shipment(file, path, found.resume_point)

    def _original(
        self, file: FollowedFile, path: str, unknown: SearchResult | None
    ) -> tuple[SearchResult | None, bool]:
        """Where to go on with a copy of what FILE held, `unknown` with others; and whether FILE holds that still."""
        live = self._files.look(self._path)
        if live is None:
            return unknown, False
        try:
            originals = find_originals(file, Names(self._base, live.identity), self._ask)
            *_, original = None, *(one for one in originals if self._may_be(file, one))
            if original is None:
                return unknown, False
            current = self.find(live, rotated=False)
            tail = file.tail_at(min(original.offset, file.size))
            is_held = live.holds(tail) and live.holds(file.tail_at(file.size))
            if current is not None and current.resume_point.name == original.name and is_held:
                return None, True
        finally:
            live.close()
        self._copied[original.name] = tail
        if original.offset < file.size:
            self._on_event(f"{path} is a copy of what {self._path} held; it is sent from byte {original.offset} on")
        return SearchResult(original), False

    def was_truncated(self, name: str, tail: Tail) -> None:
        """What was sent as `name`, up to `tail`, is no longer in its file: it may be in a copy."""
        self._copied[name] = tail

    def report_compressed(self) -> None:
        """Files that are newer than the newest one of which anything was sent may hold what was never sent."""
        missing = [path for modified, path in compressed_names(self._path) if modified > self._known]
        what = "is compressed and not read: lines in it that were not sent before are missing; use delaycompress"
        if self._known:
            for path in missing:
                self._on_event(f"{path} {what}")
        elif missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self._on_event(f"{missing[-1]}{others} {what}")


def is_done(file: FollowedFile, offset: int) -> bool:
    """Whether a rotated file is acknowledged to its end; a file that a process has open for writing has no end yet."""
    writer = file.has_writer()
    file.look(0)
    if writer is None:
        writer = time.time() - os.fstat(file.fd).st_mtime < UNSURE_SECONDS
    # One byte more than there is: its last line was completed, so its end was seen.
    return offset > file.size or (offset == file.size and not writer)


def report_result(found: SearchResult, file: FollowedFile, path: str, on_event: Callable[[str], None]) -> None:
    """Report a truncation, or a continued last line, of a file whose sending continues."""
    if found.continued:
        on_event(continued(path))
    if found.replaced:
        what = "was truncated in place" + ("" if file.identity.generation else " or replaced by another file")
        on_event(
            f"{path} {what} while tailsrv-put did not run; its present content is sent from the start. Lines written "
            "in between are lost unless a copy of the old content is next to the file"
        )


def continued(path: str) -> str:
    """The report of a last line that was completed before its writer had finished it."""
    return f"{path}: its last line had no end and was completed; bytes appended to it since are a message of their own"
