"""The journal (FILE.producers) on disk: one record for each commit, rewritten smaller when it has grown.

Zeros are written ahead of the records. A record then changes no metadata, so its sync is cheaper, and a full disk does
not stop the journal at once. A new journal is written and renamed over the old one at each start, when the old one has
grown (compaction), and when another program has removed it. A crash at any point leaves one of the two.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Final

from tailsrv_formats.journal import BY_NUMBER, Header, Record, encode_named, encode_record, seed
from tailsrv_runtime.directory import NewFile
from tailsrv_runtime.files import begin_writeback, write_at
from tailsrv_runtime.shortage import is_shortage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from collator.acks import Progress
    from collator.batch_builder import Piece
    from tailsrv_runtime.directory import Directory

SUFFIX: Final = ".producers"
AHEAD_BYTES: Final = 1 << 16
"""Zeros are written up to the next multiple of this."""

GROWTH_BYTES: Final = 1 << 20
"""A journal of this size is compacted, unless `GROWTH_FACTOR` makes the limit larger."""
GROWTH_FACTOR: Final = 8
"""A journal is not compacted before it has this many times its first size."""

Standing = tuple[bytes, "Progress", int, int]
"""A named producer at a commit: its name, its progress, and its ACKED and AT after that commit."""

SAMPLE_BYTES: Final = 1 << 16
"""The most bytes at the end of FILE that the first record covers."""


def boot_id() -> bytes:
    """The kernel's identifier of this boot, 16 bytes; empty if it has none. Raises `OSError` at a shortage."""
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
    """The CRC-32 of all pieces in order."""
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return crc


class JournalFile:
    """The journal of one stream, open for appending."""

    def __init__(
        self,
        path: str,
        directory: Directory,
        *,
        framing: str,
        sync: str,
        sample: Record,
        producers: Sequence[Standing],
    ) -> None:
        """Write a new journal for the stream at `path`, in place of an old one. For the arguments see `rewrite`.

        Raises `OSError`, and then the old journal is in place; or `SyncFailedError`.
        """
        self.path = path + SUFFIX
        self.name = os.path.basename(self.path)
        self._directory = directory
        self._boot = boot_id()  # now: later, there may be no descriptor to ask by
        self._framing = framing
        self._sync = sync
        content = self._content(sample, producers)
        self.fd = NewFile(directory, self.name).put(_padded(content))
        try:
            self._began(content, producers)
        except BaseException:
            self.close()
            raise

    def rewrite(self, new: NewFile, sample: Record, producers: Sequence[Standing]) -> None:
        """Write a new journal to `new`, durable when this returns, in place of the present one.

        `sample` covers the last bytes of FILE; `producers` are all that have committed bytes. Raises `OSError`, and
        then the present journal stays in use; or `SyncFailedError`, after which neither can be trusted.
        """
        content = self._content(sample, producers)
        fd = new.put(_padded(content))
        # The name means the new file from here on, so nothing may go to the old one, whatever happens next.
        os.close(self.fd)
        self.fd = fd
        self._began(content, producers)

    def _began(self, content: bytes, producers: Sequence[Standing]) -> None:
        self._seed = seed(content)
        self._position = len(content)
        self._allocated = len(_padded(content))
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
        """Whether it should be compacted."""
        return self._position > self._compact_at

    def postpone(self) -> None:
        """After a failed compaction: do not try again before the journal has twice its present size."""
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
        """Close the descriptor; the file stays."""
        os.close(self.fd)


def _padded(content: bytes) -> bytes:
    """`content`, and zeros up to the next multiple of `AHEAD_BYTES`."""
    return content + bytes(AHEAD_BYTES - len(content) % AHEAD_BYTES)
