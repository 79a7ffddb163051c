"""FILE.producers on disk: one record a commit, compacted when it grows.

Blocks are written with zeros before they are needed: a record then changes no metadata, its sync is cheaper, and a
full disk does not stop it soon. Compaction writes a new journal and renames it over the old one; a crash at any point
leaves one of the two.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING, Final

from collator.records import BY_NUMBER, Header, Record, encode_named, encode_record, seed
from tailsrv.kit.files import begin_writeback, create_beside, sync_directory, write_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from collator.acks import Progress
    from collator.gather import Piece

SUFFIX: Final = ".producers"
AHEAD_BYTES: Final = 1 << 16
"""How far ahead zeros are written."""

GROWTH_BYTES: Final = 1 << 20
"""A journal that has grown by this much is compacted,"""
GROWTH_FACTOR: Final = 8
"""unless it began so large that this many times its beginning is more."""

SAMPLE_BYTES: Final = 1 << 16
"""How much of FILE's end the first record covers."""


def boot_id() -> bytes:
    """Which boot this is, 16 bytes; empty where the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""


def sample(fd: int, end: int) -> Record:
    """The first record of a journal that begins when FILE has `end` durable bytes: it covers the last of them."""
    start = max(0, end - SAMPLE_BYTES)
    return Record(start, end, end, zlib.crc32(os.pread(fd, end - start, start)))


def checksum(pieces: Iterable[Piece]) -> int:
    """The CRC-32 of all pieces, one behind the other."""
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return crc


class JournalFile:
    """The journal of one stream, open for appending."""

    def __init__(self, path: str, framing: str, sync: str) -> None:
        """Nothing is on disk before `begin`."""
        self.path = path + SUFFIX
        self._framing = framing
        self._sync = sync
        self._fd = -1
        self._seed = 0
        self._position = 0
        self._allocated = 0
        self._numbered = 0
        self._compact_at = 0

    def begin(self, sample: Record, producers: Mapping[bytes, Progress]) -> None:
        """Start a new journal, durable when this returns, in place of the one that was there.

        `sample` covers the last bytes of FILE. Raises `OSError`; the old journal is then in place.
        """
        content = self._content(sample, producers)
        self._replace(content)
        for number, progress in enumerate(producers.values()):
            progress.number = number
        self._numbered = len(producers)

    def _content(self, sample: Record, producers: Mapping[bytes, Progress]) -> bytes:
        header = Header(os.urandom(16), boot_id(), self._framing, self._sync).encode()
        named = [encode_named(name, progress.acked, progress.at) for name, progress in producers.items()]
        return header + encode_record(seed(header), sample, (), named)

    def _replace(self, content: bytes) -> None:
        fd = create_beside(self.path, content + bytes(AHEAD_BYTES - len(content) % AHEAD_BYTES))
        sync_directory(self.path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._seed = seed(content)
        self._position = len(content)
        self._allocated = len(content) + AHEAD_BYTES - len(content) % AHEAD_BYTES
        self._compact_at = max(GROWTH_BYTES, GROWTH_FACTOR * len(content))

    @property
    def has_grown(self) -> bool:
        """Whether it is worth a new beginning."""
        return self._position > self._compact_at

    def postpone(self) -> None:
        """A new beginning was not possible: go on for as long again."""
        self._compact_at = 2 * self._position

    def entries(self, moved: Iterable[tuple[bytes, Progress, int, int]]) -> tuple[list[bytes], list[bytes]]:
        """Encode the producers (name, progress, ACKED, AT) of a commit: those known by number, and new ones by name."""
        numbered, named = [], []
        for name, progress, acked, at in moved:
            if progress.number >= 0:
                numbered.append(BY_NUMBER.pack(progress.number, acked, at))
            else:
                progress.number = self._numbered
                self._numbered += 1
                named.append(encode_named(name, acked, at))
        return numbered, named

    def append(self, record: Record, numbered: list[bytes], named: list[bytes]) -> None:
        """Write a record. Raises `OSError` when there is no room; calling again with the same one tries again."""
        data = encode_record(self._seed, record, numbered, named)
        end = self._position + len(data)
        if end > self._allocated:
            upto = end + AHEAD_BYTES - end % AHEAD_BYTES
            write_at(self._fd, bytes(upto - self._allocated), self._allocated)
            self._allocated = upto
        write_at(self._fd, data, self._position)
        self._position = end

    def begin_writeback(self) -> None:
        """Have the kernel begin to write: `sync` has less to wait for."""
        begin_writeback(self._fd)

    def sync(self) -> None:
        """Make all records durable. Raises `OSError`, after which nothing can be trusted."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sweep(path: str) -> None:
    """Remove what a crash in the middle of a new beginning left beside `path`; its writer's lock must be held."""
    directory, name = os.path.split(path)
    prefix = f".{name}{SUFFIX}."
    for entry in os.listdir(directory or "."):
        if entry.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, entry))
