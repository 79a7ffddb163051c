"""Recovery: at each start, FILE, its journal and its commit mark are made consistent.

The content of the three decides where the stream ends (decision.py). Then bytes after that offset are rescued, FILE is
made durable, and only then a new journal and the commit mark are written. Each step may be killed or fail; the next
attempt comes to the same decision. A recovery may take long, so it runs on a thread: the loop reads its progress from
a `Tracker`, and stops it there.
"""

from __future__ import annotations

import os
import stat
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from collator.acks import Progress
from collator.decision import RefusedError, decide
from collator.journal import SUFFIX, JournalFile, boot_id, sample
from collator.obstacles import obstacle
from collator.rescue import SUFFIX as RESCUE_SUFFIX
from collator.rescue import Rescue
from tailsrv_formats.commit_mark import SUFFIX as MARK_SUFFIX
from tailsrv_formats.commit_mark import encode_line
from tailsrv_formats.errors import reason
from tailsrv_formats.framing import FramingError
from tailsrv_formats.journal import JournalError, decode, producers
from tailsrv_runtime.commit_mark import MarkReader, MarkWriter
from tailsrv_runtime.directory import NewFile
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import open_beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.streamfile import StreamFile
    from tailsrv_formats.framing import Framing
    from tailsrv_formats.journal import Journal, Record

READ_BYTES: Final = 1 << 20
ADOPT: Final = "--adopt accepts FILE as it is and discards the journal (all producers start at 0)"


class StoppedError(Exception):
    """The daemon stops, and so does the recovery."""


class Tracker:
    """The progress of a recovery. The loop reads it, and may stop the recovery at its next block."""

    def __init__(self) -> None:
        self.done = 0
        """Bytes read and copied in the present step."""
        self.total = 0
        """All bytes of the present step."""
        self.stopped = False
        """Set by the loop."""

    def begin(self, total: int) -> None:
        """Begin a step that reads `total` bytes."""
        self.done, self.total = 0, total
        self.advance(0)

    def advance(self, count: int) -> None:
        """Add `count` bytes to the progress. Raises `StoppedError`."""
        self.done += count
        if self.stopped:
            raise StoppedError


def _unsure(journal: Journal) -> int:
    """The offset in FILE after which the disk may hold less than the page cache shows."""
    last = journal.records[-1]
    return min((record.start for record in journal.records if record.end > last.synced), default=last.start)


class Recovered(msgspec.Struct):
    """The result of a recovery."""

    journal: JournalFile
    mark: MarkWriter
    producers: dict[bytes, Progress]
    end: int
    finding: str
    """What happened, for the log."""
    created: bool
    """Whether the stream is new: FILE was empty, and there was no journal."""

    def close(self) -> None:
        """Close the journal and the commit mark."""
        self.journal.close()
        self.mark.close()


def recover(
    file: StreamFile, framing: Framing, sync: str, tracker: Tracker, facts: dict[str, object], *, adopt: bool
) -> Recovered:
    """Recover a stream. Lost and rescued bytes are noted in `facts`, for the log.

    Raises `FatalError` if an operator has to decide, `OSError` for other failures, and `StoppedError`. It can be called
    again after each of them.
    """
    directory = file.directory
    for suffix in (SUFFIX, MARK_SUFFIX, RESCUE_SUFFIX):
        directory.sweep(file.name + suffix)
    mark = read_mark(file.path)
    content = None if adopt else read_journal(file.path)
    known: dict[bytes, Progress] = {}
    size = file.end = file.size()
    if content is None:
        file.evict(0)
        end, finding = _adopt(file, framing, mark, tracker, adopt=adopt)
        if mark is not None and mark > end:
            facts["lost_bytes"] = mark - end
    else:
        boot = boot_id()
        try:
            journal = decode(content, boot)
            if journal.header.framing != framing.name:
                why = f"the stream was written with --framing {journal.header.framing}, not {framing.name}"
                raise RefusedError(why)  # noqa: TRY301 - the handler below completes the text of every refusal
            unsure = _unsure(journal)
            file.evict(unsure)
            tracker.begin(max(0, journal.records[-1].end - unsure))
            verifies = partial(verify_record, file.fd, advance=tracker.advance)
            decision = decide(journal, size, mark, verifies, same_boot=bool(boot) and journal.header.boot == boot)
        except (JournalError, RefusedError) as error:
            raise FatalError(f"{file.path}{SUFFIX}: {error}; {ADOPT}") from None
        found = producers(content, journal, decision.records)
        known = {name: Progress(acked, at) for name, (acked, at) in found.items()}
        end, finding = decision.end, decision.finding
        if decision.lost:
            facts["lost_bytes"] = decision.lost
    if size > end:
        tracker.begin(size - end)
        rescue = Rescue(file, end)
        rescue.run(tracker.advance)
        facts.update({"rescued": rescue.path, "rescued_bytes": rescue.copied})
    file.end = end
    tracker.advance(0)
    file.sync()
    standing = [(name, progress, progress.acked, progress.at) for name, progress in known.items()]
    journal_file = JournalFile(
        file.path,
        directory,
        framing=framing.name,
        sync=sync,
        sample=sample(file.fd, end),
        producers=standing,
    )
    try:
        return Recovered(journal_file, _open_mark(file, end), known, end, finding, content is None and not size)
    except BaseException:
        journal_file.close()
        raise


def _open_mark(file: StreamFile, end: int) -> MarkWriter:
    directory, path = file.directory, file.path + MARK_SUFFIX
    if not os.path.lexists(path):
        os.close(NewFile(directory, file.name + MARK_SUFFIX).put(encode_line(end) * 2))
    mark = MarkWriter(path, end)
    try:
        directory.sync()  # without a commit mark, consumers would read all of FILE
    except BaseException:
        mark.close()
        raise
    return mark


def _adopt(file: StreamFile, framing: Framing, mark: int | None, tracker: Tracker, *, adopt: bool) -> tuple[int, str]:
    """Accept FILE without a journal: complete its last message if possible. Returns the end of the last whole one."""
    size = file.size()
    if not size:
        return 0, "a new stream"
    if framing.terminator:
        if os.pread(file.fd, 1, size - 1) == framing.terminator:
            return size, "adopted"
        file.append([framing.terminator])
        return size + 1, "adopted, its last message completed"
    tracker.begin(size)
    try:
        end = walk_file(file.fd, size, framing, tracker.advance)
    except FramingError as error:
        end, why = -1, str(error)
    else:
        why = f"its last whole message ends at byte {end}, and consumers may have seen it up to byte {mark}"
    if end < 0 or (mark is not None and end < mark <= size):
        if adopt:
            return size, "adopted as it is"
        raise FatalError(
            f"cannot adopt {file.path} with --framing {framing.name}: {why}; give its real framing, or {ADOPT}"
        )
    return end, "adopted" if end == size else "adopted, without its incomplete last message"


def walk_file(fd: int, size: int, framing: Framing, advance: Callable[[int], None]) -> int:
    """The end of the last whole message of a file. Raises `FramingError` with the offset of invalid framing.

    ``advance(count)`` is called after each block, and may raise.
    """
    position, step = 0, max(READ_BYTES, framing.max_message_bytes)
    while position < size:
        data = os.pread(fd, min(step, size - position), position)
        boundary, _ = framing.walk(data, 0, len(data))
        if boundary < len(data):
            try:
                framing.missing(data, boundary, len(data))
            except FramingError as error:
                raise FramingError(f"at byte {position + boundary}: {error}") from None
        position += boundary
        advance(boundary)
        if not data or position + len(data) - boundary >= size:
            break
    return position


def read_mark(path: str) -> int | None:
    """The committed length in the commit mark; None without a valid one."""
    try:
        reader = MarkReader(path + MARK_SUFFIX)
    except FileNotFoundError:
        return None
    except OSError as error:
        if obstacle(error) is not None:
            raise
        raise FatalError(
            f"cannot read {path + MARK_SUFFIX}: {reason(error)}; move it away unless it is a regular file that this"
            " user may read"
        ) from None
    try:
        return reader.read()
    finally:
        reader.close()


def read_journal(path: str) -> bytes | None:
    """The content of the journal; None if it does not exist."""
    try:
        fd = open_beside(path + SUFFIX, os.O_RDONLY | os.O_NONBLOCK)  # O_NONBLOCK: never wait at a FIFO
    except FileNotFoundError:
        return None
    except OSError as error:
        if obstacle(error) is not None:
            raise
        raise FatalError(
            f"cannot read {path + SUFFIX}: {reason(error)}; it must be a regular file, not a link"
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FatalError(f"cannot read {path + SUFFIX}: it is not a regular file; move it away")
    with open(fd, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # see StreamFile.evict
        return file.read()


def verify_record(fd: int, record: Record, advance: Callable[[int], None] = lambda _count: None) -> bool:
    """Whether the file has the bytes that the record covers; ``advance(count)`` is called after each block."""
    position, crc = record.start, 0
    while position < record.end:
        data = os.pread(fd, min(READ_BYTES, record.end - position), position)
        if not data:
            return False
        crc = zlib.crc32(data, crc)
        position += len(data)
        advance(len(data))
    # A record that covers no bytes still states the least length of FILE.
    return crc == record.crc and os.fstat(fd).st_size >= record.end
