"""What rotation did to a file while nobody looked, found by the files next to it, and by what was sent of each."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.put.file_places import Found, Names, Place, find, find_later, find_originals
from tailsrv_client.put.followed_file import Tail
from tailsrv_client.put.rotated_files import compressed_names, rotated_names
from tailsrv_client.put.shipment import Shipment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_client.put.followed_file import FollowedFile
    from tailsrv_client.put.opened_files import OpenedFiles

UNSURE_SECONDS: Final = 10.0
"""How long a rotated file must be quiet before its end is believed, where the kernel does not say who writes."""


class Backlog:
    """The rotated files of `path`, whose producers are called after `base`. `ask`: what is acknowledged of a name."""

    def __init__(
        self, files: OpenedFiles, path: str, base: str, ask: Callable[[str], int], tell: Callable[[str], None]
    ) -> None:
        self._files, self._path, self._base = files, path, base
        self._ask, self._tell = ask, tell
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

    def find(self, file: FollowedFile, *, rotated: bool) -> Found | None:
        """Where to go on with a file of ours; None while its first message is not complete."""
        names = Names(self._base, file.identity)
        found = find(file, names, self._ask, rotated=rotated)
        if found is not None and not self._may_be(file, found.place):
            return find_later(file, names, self._ask)
        return found

    def _may_be(self, file: FollowedFile, place: Place) -> bool:
        """False when a copy shows that what was sent under this name was something else."""
        return place.name not in self._copied or file.holds(self._copied[place.name])

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
        if found is not None and found.place.offset:
            self._known = max(self._known, os.fstat(file.fd).st_mtime_ns)
        if found is None or is_done(file, found.place.offset):
            self._files.close(file, for_good=found is None)  # then it is to be ignored
            return None
        tell_found(found, file, path, self._tell)
        return Shipment(file, path, found.place)

    def _original(self, file: FollowedFile, path: str, unknown: Found | None) -> tuple[Found | None, bool]:
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
            if current is not None and current.place.name == original.name and is_held:
                return None, True
        finally:
            live.close()
        self._copied[original.name] = tail
        if original.offset < file.size:
            self._tell(f"{path} is a copy of what {self._path} held; it is sent from byte {original.offset} on")
        return Found(original), False

    def was_truncated(self, name: str, tail: Tail) -> None:
        """What was sent as `name`, up to `tail`, is no longer in its file: it may be in a copy."""
        self._copied[name] = tail

    def tell_compressed(self) -> None:
        """Files that are newer than the newest one of which anything was sent may hold what was never sent."""
        missing = [path for modified, path in compressed_names(self._path) if modified > self._known]
        what = "is compressed: what of it was not sent before is missing; use delaycompress"
        if self._known:
            for path in missing:
                self._tell(f"{path} {what}")
        elif missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self._tell(f"{missing[-1]}{others} {what}")


def is_done(file: FollowedFile, offset: int) -> bool:
    """Whether a rotated file is acknowledged to its end; while somebody can write to it, it has none."""
    writer = file.has_writer()
    file.look(0)
    if writer is None:
        writer = time.time() - os.fstat(file.fd).st_mtime < UNSURE_SECONDS
    # One byte more than there is: its last line was completed, so its end was seen.
    return offset > file.size or (offset == file.size and not writer)


def tell_found(found: Found, file: FollowedFile, path: str, tell: Callable[[str], None]) -> None:
    """Tell what an operator should know about a file that goes on."""
    if found.continued:
        tell(continued(path))
    if found.replaced:
        what = "was truncated in place" + ("" if file.identity.generation else " or replaced by another file")
        tell(
            f"{path} {what} while nobody looked; what it holds now is sent from its start. What was written before, "
            "after the last look, is lost unless a copy of it is next to the file"
        )


def continued(path: str) -> str:
    """What to tell of a line that was completed too early."""
    return f"{path}: its last line had no end and was completed; what was appended to it since is another message"
