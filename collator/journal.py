"""FILE.producers on disk: one record a commit, compacted when it grows.

Blocks are written with zeros before they are needed: a record then changes no metadata, its sync is cheaper, and a
full disk does not stop it soon. A new journal is written and renamed over the old one, at each start, when the old one
has grown (compaction), and when somebody has removed it; a crash at any point leaves one of the two.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Final

from tailsrv_formats.journal import BY_NUMBER, Header, Record, encode_named, encode_record, seed
from tailsrv_runtime.files import begin_writeback, write_at
from tailsrv_runtime.shortage import is_shortage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from collator.acks import Progress
    from collator.batch_builder import Piece
    from collator.beside import Directory, NewFile

SUFFIX: Final = ".producers"
AHEAD_BYTES: Final = 1 << 16
"""How far ahead zeros are written."""

GROWTH_BYTES: Final = 1 << 20
"""A journal that has grown by this much is compacted,"""
GROWTH_FACTOR: Final = 8
"""unless it began so large that this many times its beginning is more."""

Standing = tuple[bytes, "Progress", int, int]
"""A named producer, and how far it is at some commit: its name, itself, its ACKED and AT by then."""

SAMPLE_BYTES: Final = 1 << 16
"""How much of FILE's end the first record covers."""


def boot_id() -> bytes:
    """Which boot this is, 16 bytes; empty where the kernel does not say. Raises `OSError` when something is short."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except OSError as error:
        if is_shortage(error):
            raise
        return b""
    except ValueError:
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

    def __init__(self, path: str, directory: Directory, framing: str, sync: str) -> None:
        """Of the stream at `path`. Nothing is on disk before `begin`. Raises `OSError` when something is short."""
        self.path = path + SUFFIX
        self.name = os.path.basename(self.path)
        self._directory = directory
        self._boot = boot_id()  # now: later, there may be no descriptor to ask by
        self._framing = framing
        self._sync = sync
        self.fd = -1
        """-1 before `begin`."""
        self._seed = 0
        self._position = 0
        self._allocated = 0
        self._numbered = 0
        self._compact_at = 0

    def begin(self, new: NewFile, sample: Record, producers: Sequence[Standing]) -> None:
        """Start a new journal in `new`, durable when this returns, in place of the one that was there.

        `sample` covers the last bytes of FILE; `producers` are all that have anything committed. Raises `OSError`, and
        then the old journal is in place and in use; or `SyncFailedError`, after which nothing can be trusted.
        """
        content = self._content(sample, producers)
        padded = content + bytes(AHEAD_BYTES - len(content) % AHEAD_BYTES)
        fd = new.put(padded)
        # The name means the new file from here on, whatever happens next: nothing may go to the old one any more.
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = fd
        self._seed = seed(content)
        self._position = len(content)
        self._allocated = len(padded)
        self._compact_at = max(GROWTH_BYTES, GROWTH_FACTOR * len(content))
        for number, (_, progress, _, _) in enumerate(producers):
            progress.number = number
        self._numbered = len(producers)
        self._directory.sync()

    def _content(self, sample: Record, producers: Sequence[Standing]) -> bytes:
        header = Header(os.urandom(16), self._boot, self._framing, self._sync).encode()
        named = [encode_named(name, acked, at) for name, _, acked, at in producers]
        return header + encode_record(seed(header), sample, (), named)

    @property
    def has_grown(self) -> bool:
        """Whether it is worth a new beginning."""
        return self._position > self._compact_at

    def postpone(self) -> None:
        """A new beginning was not possible: go on for as long again."""
        self._compact_at = 2 * self._position

    def entries(self, moved: Iterable[Standing]) -> tuple[list[bytes], list[bytes]]:
        """Encode the producers of a commit: those known by number, and new ones by name."""
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
            write_at(self.fd, bytes(upto - self._allocated), self._allocated)
            self._allocated = upto
        write_at(self.fd, data, self._position)
        self._position = end

    def begin_writeback(self) -> None:
        """Have the kernel begin to write: `sync` has less to wait for."""
        begin_writeback(self.fd)

    def sync(self) -> None:
        """Make all records durable. Raises `OSError`, after which nothing can be trusted."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
