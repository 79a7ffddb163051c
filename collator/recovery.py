"""What a start finds, and where the stream goes on.

`decide` is pure: from what the journal, the commit mark and FILE say it takes the offset where the stream ends. It goes
back to the last record that FILE bears out, and never below what consumers have seen while FILE still has those bytes:
rather than that it refuses, and an operator decides. `recover` does what was decided: what lies beyond is moved aside,
FILE is made durable, and only then a new journal and the mark say so. Each step can be killed; the next start decides
the same again.

How each order of a crash looks, with `--sync always`:

    killed while or after FILE is written       FILE is longer than the last record says: rescued
    power cut, FILE's blocks came first         the same
    power cut, the journal's blocks came first  FILE does not bear out the last record: the one before counts
    killed before the mark moved                the mark is behind the journal: it is moved
"""

from __future__ import annotations

import os
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from collator.acks import Progress
from collator.framing import FramingError
from collator.journal import SUFFIX, JournalFile, boot_id, sample, sweep
from collator.records import JournalError, decode, producers
from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.files import open_beside
from tailsrv.kit.mark import SUFFIX as MARK_SUFFIX
from tailsrv.kit.mark import MarkReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from collator.framing import Framing
    from collator.records import Journal, Record
    from collator.streamfile import StreamFile
    from tailsrv.kit.logs import Log

READ_BYTES: Final = 1 << 20
ADOPT: Final = "--adopt accepts the file as it is and forgets the producers"


class RefusedError(Exception):
    """Nothing that could be done by itself would keep what was promised."""


class Decision(msgspec.Struct, frozen=True):
    """Where the stream ends."""

    end: int
    records: int
    """How many of the journal's records hold."""
    finding: str
    """What happened, for the log."""
    lost: int = 0
    """Bytes that consumers may have seen and that are gone."""


def decide(
    journal: Journal, size: int, mark: int | None, bears_out: Callable[[Record], bool], *, same_boot: bool
) -> Decision:
    """Where the stream ends that has this journal.

    `size`: bytes in FILE. `mark`: how far consumers may have read, if known. ``bears_out(record)``: whether FILE
    holds that record's bytes. `same_boot`: no power was lost since. Raises `RefusedError`.
    """
    records = journal.records
    last = len(records) - 1
    held = _last_held(journal, bears_out, same_boot=same_boot)
    if held < 0:
        if size < records[0].end:
            raise RefusedError(f"FILE has {size} bytes and the journal begins at {records[0].end}")
        raise RefusedError("FILE holds other bytes than the journal knows: it belongs to another file")
    end = records[held].end
    power_lost = journal.header.sync != "always" and not same_boot
    seen = max(mark or 0, records[last].synced)
    if not end and seen and not power_lost:
        raise RefusedError(f"FILE holds nothing of the {seen} bytes that the journal and the mark know")
    if seen > end and size >= seen and not (power_lost and held < last):
        if power_lost:
            return Decision(seen, held + 1, "the mark reached the disk and the journal did not")
        raise RefusedError(f"consumers may have seen FILE up to byte {seen}, and the journal vouches for {end} bytes")
    if seen > end:
        return Decision(end, held + 1, "FILE lost bytes that were committed", lost=seen - end)
    if held < last:
        return Decision(end, held + 1, "the last commit did not reach FILE")
    if size > end:
        return Decision(end, held + 1, "bytes that were not committed")
    return Decision(end, held + 1, "a torn journal record" if journal.torn else "in order")


def _last_held(journal: Journal, bears_out: Callable[[Record], bool], *, same_boot: bool) -> int:
    """The last record up to which FILE bears out all; -1 when it bears out none."""
    records = journal.records
    last = len(records) - 1
    if same_boot and journal.header.sync == "never":
        # The kernel that took these bytes still runs, and took them in this order: what is there has all before it.
        return next((index for index in range(last, -1, -1) if bears_out(records[index])), -1)
    durable = last
    while durable > 0 and records[durable].end > records[last].synced:
        durable -= 1
    held = durable
    while held >= 0 and not bears_out(records[held]):
        held -= 1
    if held < durable:
        return held
    while held < last and bears_out(records[held + 1]):
        held += 1
    return held


def _unsure(journal: Journal) -> int:
    """From where on FILE may hold less than the page cache shows."""
    last = journal.records[-1]
    return min((record.start for record in journal.records if record.end > last.synced), default=last.start)


class Recovered(msgspec.Struct):
    """What a start has come to."""

    journal: JournalFile
    producers: dict[bytes, Progress]
    end: int


def recover(file: StreamFile, framing: Framing, sync: str, log: Log, *, adopt: bool) -> Recovered:
    """Bring FILE, journal and mark in order. Raises `FatalError` where only an operator can decide, or `OSError`."""
    sweep(file.path)
    mark = read_mark(file.path)
    content = None if adopt else read_journal(file.path)
    known: dict[bytes, Progress] = {}
    facts: dict[str, object] = {"file": file.path}
    size = file.size()
    if content is None:
        file.evict(0)
        end, finding = _adopt(file, framing, mark, adopt=adopt)
    else:
        boot = boot_id()
        try:
            journal = decode(content, boot)
            if journal.header.framing != framing.name:
                raise RefusedError(f"the stream has --framing {journal.header.framing}, not {framing.name}")  # noqa: TRY301 - one place says what all refusals have in common
            file.evict(_unsure(journal))
            decision = decide(
                journal, size, mark, partial(borne_out, file.fd), same_boot=bool(boot) and journal.header.boot == boot
            )
        except (JournalError, RefusedError) as error:
            raise FatalError(f"{file.path}{SUFFIX}: {error}; {ADOPT}") from None
        found = producers(content, journal, decision.records)
        known = {name: Progress(acked, at) for name, (acked, at) in found.items()}
        end, finding = decision.end, decision.finding
        if decision.lost:
            facts["lost_bytes"] = decision.lost
    if size > end:
        facts |= {"rescued": file.rescue(end, size), "rescued_bytes": size - end}
    file.end = end
    file.settle()
    journal_file = JournalFile(file.path, framing.name, sync)
    journal_file.begin(sample(file.fd, end), known)
    write = log.warning if len(facts) > 1 else log.info
    write("recovered", **facts, found=finding, bytes=end, producers=len(known))
    return Recovered(journal_file, known, end)


def _adopt(file: StreamFile, framing: Framing, mark: int | None, *, adopt: bool) -> tuple[int, str]:
    """Take FILE without a journal: where its last whole message ends, after completing one that can be."""
    size = file.size()
    if not size:
        return 0, "a new stream"
    if framing.terminator:
        if os.pread(file.fd, 1, size - 1) == framing.terminator:
            return size, "adopted"
        file.end = size
        file.append([framing.terminator])
        return size + 1, "adopted, its last message completed"
    try:
        end = walk_file(file.fd, size, framing)
    except FramingError as error:
        end, why = -1, str(error)
    else:
        why = f"its last whole message ends at byte {end}, and consumers may have seen it up to byte {mark}"
    if end < 0 or (mark is not None and end < mark <= size):
        if adopt:
            return size, "adopted as it is"
        raise FatalError(f"{file.path} is no stream with --framing {framing.name}: {why}; give another one, or {ADOPT}")
    return end, "adopted" if end == size else "adopted, without its torn end"


def walk_file(fd: int, size: int, framing: Framing) -> int:
    """Where the last whole message of a file ends. Raises `FramingError` with the offset of one that is none."""
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
        if position + len(data) - boundary >= size:
            break
    return position


def read_mark(path: str) -> int | None:
    """What the commit mark says; None without a mark that says anything."""
    try:
        reader = MarkReader(path + MARK_SUFFIX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FatalError(f"cannot read {path + MARK_SUFFIX}: {reason(error)}") from None
    try:
        return reader.read()
    finally:
        reader.close()


def read_journal(path: str) -> bytes | None:
    """All bytes of the journal; None when there is none."""
    try:
        fd = open_beside(path + SUFFIX, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FatalError(f"cannot read {path + SUFFIX}: {reason(error)}; it must be a file, not a link") from None
    with open(fd, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # see StreamFile.evict
        return file.read()


def borne_out(fd: int, record: Record) -> bool:
    """Whether the file holds the bytes that the record covers."""
    position, crc = record.start, 0
    while position < record.end:
        data = os.pread(fd, min(READ_BYTES, record.end - position), position)
        if not data:
            return False
        crc = zlib.crc32(data, crc)
        position += len(data)
    # A record of no bytes says that FILE is at least so long.
    return crc == record.crc and os.fstat(fd).st_size >= record.end
