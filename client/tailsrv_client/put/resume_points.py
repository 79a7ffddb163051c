"""Under which producer's name a file is sent, and from which byte on: nothing is kept here, the collator remembers.

A file is known by its inode (with the generation, where the file system has one) and by its first message:

    BASE:INODE[.GENERATION]:CRC         the first message of the inode's first content, under its CRC-32
    BASE:INODE[.GENERATION]             the rest of that content
    BASE:INODE[.GENERATION]:CRC:tN      content that came later, under the same inode: all of it

So a file whose first message is unknown, while the second name of its inode is not, was truncated in place and
written again; or, without generations, it is another file that was given the number of a deleted one. Contents that
begin alike differ in their ends: a message has to end where the acknowledged bytes end. A copy, as logrotate's
copytruncate makes it, begins like what it is a copy of, and is continued at the end of that.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from tailsrv_client.protocol.session import NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_client.put.followed_file import FollowedFile, Identity

NAME_PART_CHARACTERS: Final = 40


class ResumePoint(NamedTuple):
    """The point at which sending continues: as the producer `name`, whose stream begins at byte `shift` of the file.

    With `head`, the stream is that message, the first of the file, and the rest is another producer's.
    """

    name: str
    shift: int = 0
    acked: int = 0
    head: bytes | None = None
    rest: str = ""

    @property
    def offset(self) -> int:
        """The first byte of the file that is not acknowledged."""
        return self.shift + self.acked


class SearchResult(NamedTuple):
    """A place, and what was found out about the file."""

    resume_point: ResumePoint
    replaced: bool = False
    """Whether another content was sent under its inode before."""
    continued: bool = False
    """Whether a line was completed and sent, and continued by a late writer."""

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever sent under its inode."""
        return self.resume_point.head is not None


class Names:
    """The names of the producers of one inode."""

    def __init__(self, base: str, identity: Identity) -> None:
        stem = f"{base}:{identity.inode}"
        self._stem = stem if identity.generation is None else f"{stem}.{identity.generation:x}"

    @property
    def rest(self) -> str:
        """The name for the first content after its first message."""
        return _fitting(self._stem)

    def head(self, crc: int) -> str:
        """The first message of the first content."""
        return _fitting(f"{self._stem}:{crc:08x}")

    def later(self, crc: int, life: int) -> str:
        """A later content; `life`, from 1 on, counts those that begin alike."""
        return _fitting(f"{self._stem}:{crc:08x}:t{life}")


def base_name(path: str, host: str) -> str:
    """The part of a producer's name that identifies host and path: 1 to 90 valid characters."""
    path = os.path.abspath(path)
    shown = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path))[:NAME_PART_CHARACTERS]
    host = re.sub(r"[^A-Za-z0-9._-]", "_", host)[:NAME_PART_CHARACTERS]
    return f"{host}:{shown}-{zlib.crc32(os.fsencode(path)):08x}"


def _fitting(name: str) -> str:
    """`name`, shortened with a CRC-32 if it exceeds the limit, as with long host and file names and a 64-bit inode."""
    return name if len(name) <= NAME_BYTES else f"{name[: NAME_BYTES - 9]}-{zlib.crc32(name.encode()):08x}"


def find_resume_point(
    file: FollowedFile, names: Names, ask: Callable[[str], int], *, rotated: bool
) -> SearchResult | None:
    """Where to go on with `file`; None while its first message is not complete.

    `ask` returns the number of acknowledged bytes of a name. `rotated`: its last line may have been completed by us.
    """
    first = file.first_message()
    if first is None:
        return None
    *_, known = None, *_contents(first, names, ask)
    if known is not None:
        if file.is_boundary(known.offset):
            return SearchResult(known)
        if rotated and known.acked and known.offset <= file.size and not file.is_boundary(known.offset - 1):
            return SearchResult(known._replace(shift=known.shift - 1), continued=True)
    elif not ask(names.rest):
        return SearchResult(ResumePoint(names.head(zlib.crc32(first)), head=first, rest=names.rest))
    return SearchResult(_later(first, names, ask), replaced=True)


def find_later(file: FollowedFile, names: Names, ask: Callable[[str], int]) -> SearchResult | None:
    """The place for what a file holds after it was truncated in place; None while it has no first message."""
    first = file.first_message()
    return None if first is None else SearchResult(_later(first, names, ask), replaced=True)


def find_originals(copy: FollowedFile, names: Names, ask: Callable[[str], int]) -> list[ResumePoint]:
    """Where to go on with what may be a copy of what the file of these names has held; the likeliest last."""
    first = copy.first_message()
    if first is None:
        return []
    # With a single message there is no rest to compare, whatever content has the name of the rest.
    alone = copy.size <= len(first)
    fitting = [one for one in _contents(first, names, ask) if alone or copy.is_boundary(one.offset)]
    return sorted(fitting, key=lambda one: one.offset >= copy.size)


def _contents(first: bytes, names: Names, ask: Callable[[str], int]) -> Iterator[ResumePoint]:
    """The places of the contents that begin with the message `first` and were sent, in the order of time."""
    crc, life = zlib.crc32(first), 1
    if ask(names.head(crc)):
        yield ResumePoint(names.rest, len(first), ask(names.rest))
    while acked := ask(names.later(crc, life)):
        yield ResumePoint(names.later(crc, life), acked=acked)
        life += 1


def _later(first: bytes, names: Names, ask: Callable[[str], int]) -> ResumePoint:
    """A name that was never used."""
    life = 1
    while ask(names.later(zlib.crc32(first), life)):
        life += 1
    return ResumePoint(names.later(zlib.crc32(first), life))
