"""`tailsrv-check FILE`: whether a stream and everything beside it agree. Offline; never writes, waits or repairs.

What the journal says is compared with FILE's bytes and with the commit mark, every byte is framed, every producer's AT
must be a boundary, and the index is compared with what is there. All of it is sequential reading in large blocks; no
message is visited one by one where the framing can help it. A line for each finding; exit code 1 if there is one.
"""

from __future__ import annotations

import fcntl
import glob
import os
import stat
import zlib
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import msgspec

from collator.framing import FRAMINGS, Framing, FramingError, make_framing
from collator.journal import SUFFIX as JOURNAL_SUFFIX
from collator.journal import boot_id
from collator.records import Journal, JournalError, Record, decode, producers
from indexer.verify import verify
from tailsrv.kit.errors import reason
from tailsrv.kit.files import open_beside
from tailsrv.kit.mark import MARK_BYTES
from tailsrv.kit.mark import SUFFIX as MARK_SUFFIX
from tailsrv.kit.mark import decode as decode_mark
from tailsrv.kit.options import run_command

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK_BYTES: Final = 1 << 22
LONGEST_MESSAGE: Final = 1 << 26
"""What a message may measure unless told otherwise: what an indexer accepts."""


class Report(msgspec.Struct):
    """What was looked at, and what was found."""

    facts: list[str] = []
    findings: list[str] = []
    """What does not agree, a sentence each."""


def check(path: str, *, framing: str | None = None, max_message_bytes: int = LONGEST_MESSAGE) -> Report:
    """Look at the stream at `path`. `framing`: default is what the journal says, or newline."""
    report = Report()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        report.findings.append(f"{path}: cannot be read: {reason(error)}")
        return report
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            report.findings.append(f"{path}: is not a regular file; a stream is a file that grows")
            return report
        if _has_writer(fd):
            report.facts.append("a writer is at work: what is found may be of this moment alone")
        _Check(path, fd, report).run(framing, max_message_bytes)
    finally:
        os.close(fd)
    return report


def _has_writer(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


class _Check:
    def __init__(self, path: str, fd: int, report: Report) -> None:
        self._path = path
        self._fd = fd
        self._report = report
        # What is beside it first: a writer at work only ever makes FILE longer than they say.
        self._mark = self._read_mark()
        self._content = self._read(JOURNAL_SUFFIX)
        self._size = os.fstat(fd).st_size

    def run(self, framing: str | None, max_message_bytes: int) -> None:
        journal = self._decode_journal()
        if journal is not None:
            if framing is not None and framing != journal.header.framing:
                self._found(f"{self._path}{JOURNAL_SUFFIX}: the stream has framing {journal.header.framing}")
            framing = framing or journal.header.framing
        committed = self._compare_lengths(journal)
        known = {}
        if journal is not None and self._content is not None:
            known = producers(self._content, journal, len(journal.records))
        framed = make_framing(framing or FRAMINGS[0], max_message_bytes)
        records = [record for record in journal.records if record.end <= self._size] if journal is not None else []
        walk = _Walk(self._fd, committed, framed, records, _boundaries(known, committed))
        for finding in walk.run():
            self._found(f"{self._path}: {finding}")
        self._fact(
            f"{self._path}: {self._size} bytes, {committed} committed, {walk.messages} messages ({framed.name}),"
            f" {self._size - committed} bytes beyond"
        )
        self._tell_producers(known, committed)
        for rescued in sorted(glob.glob(glob.escape(self._path) + ".rescued-*")):
            self._fact(f"{rescued}: {os.stat(rescued).st_size} bytes that a start or a stranger's write left aside")
        if journal is not None or framing is not None:
            self._report.findings += verify(self._path, framing=framed.name, max_message_bytes=max_message_bytes)
        else:
            self._report.findings += verify(self._path, max_message_bytes=max_message_bytes)

    # --- what is beside it

    def _read(self, suffix: str) -> bytes | None:
        try:
            fd = open_beside(self._path + suffix, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._found(f"{self._path}{suffix}: cannot be read: {reason(error)}")
            return None
        with open(fd, "rb") as file:
            return file.read()

    def _read_mark(self) -> int | None:
        content = self._read(MARK_SUFFIX)
        if content is None:
            return None
        mark = decode_mark(content[:MARK_BYTES])
        if mark is None:
            self._found(f"{self._path}{MARK_SUFFIX}: neither of its lines is valid: consumers see nothing new")
        return mark

    def _decode_journal(self) -> Journal | None:
        name = self._path + JOURNAL_SUFFIX
        if self._content is None:
            self._fact(f"{name}: none; FILE counts as it is")
            return None
        try:
            journal = decode(self._content, boot_id())
            make_framing(journal.header.framing)
        except (JournalError, ValueError) as error:
            self._found(f"{name}: {error}")
            return None
        if journal.torn:
            self._found(f"{name}: {journal.torn} bytes behind its last record are none: a crash tore the next one")
        return journal

    def _compare_lengths(self, journal: Journal | None) -> int:
        """How far the stream is committed, by all accounts."""
        path, size, mark = self._path, self._size, self._mark
        committed = size if mark is None else mark
        if mark is not None and mark > size:
            self._found(f"{path}: has {size} bytes, and consumers may have seen {mark}")
        if journal is not None:
            end = journal.records[-1].end
            if end > size:
                self._found(f"{path}: has {size} bytes, and its journal vouches for {end}")
            if mark is None:
                committed = end
                self._found(f"{path}{MARK_SUFFIX}: is missing: consumers see what is not committed")
            elif mark > end:
                self._found(f"{path}{MARK_SUFFIX}: says {mark}, and the journal vouches for {end} bytes")
            elif mark < end:
                self._found(f"{path}{MARK_SUFFIX}: says {mark}, and {end} bytes are committed: consumers lag behind")
                committed = end
        committed = min(committed, size)
        if size > committed:
            self._found(f"{path}: {size - committed} bytes from byte {committed} on are not committed")
        return committed

    def _tell_producers(self, known: dict[bytes, tuple[int, int]], committed: int) -> None:
        for name, (acked, at) in sorted(known.items()):
            self._fact(f"producer {name.decode('ascii', 'replace')}: {acked} bytes, up to byte {at}")
            if at > committed or acked > at:
                self._found(f"producer {name!r}: {acked} bytes up to byte {at} can't be, of {committed}")
        if sum(acked for acked, _ in known.values()) > committed:
            self._found(f"{self._path}: the producers were acknowledged more bytes than it has")

    def _fact(self, text: str) -> None:
        self._report.facts.append(text)

    def _found(self, text: str) -> None:
        self._report.findings.append(text)


def _boundaries(known: dict[bytes, tuple[int, int]], committed: int) -> dict[int, str]:
    """Offsets that have to be boundaries, in ascending order, and why."""
    wanted = {at: f"producer {name.decode('ascii', 'replace')}'s AT" for name, (_, at) in known.items()}
    return {at: wanted[at] for at in sorted(wanted) if 0 < at <= committed}


class _Walk:
    """One pass over the committed bytes: framing, boundaries, and the checksums of the journal's records."""

    def __init__(
        self, fd: int, end: int, framing: Framing, records: Iterable[Record], boundaries: dict[int, str]
    ) -> None:
        self._fd = fd
        self._end = end
        self._framing = framing
        self._records = [record for record in records if record.end <= end]
        self._boundaries = boundaries
        self._data = bytearray(BLOCK_BYTES)
        self.messages = 0

    def run(self) -> list[str]:
        """What is wrong."""
        found = self._walk_messages()
        return found + self._checksums()

    def _walk_messages(self) -> list[str]:
        framing, found = self._framing, list[str]()
        wanted = list(self._boundaries)
        wanted.reverse()
        position = 0
        while position < self._end:
            length = self._read(position)
            boundary = 0
            while wanted and wanted[-1] <= position + length:
                at = wanted.pop()
                boundary, count = framing.walk(self._data, boundary, length, until=at - position)
                self.messages += count
                if boundary + position != at:
                    found.append(f"byte {at} is no boundary of messages, and it should be: {self._boundaries[at]}")
            boundary, count = framing.walk(self._data, boundary, length)
            self.messages += count
            if boundary < length:
                try:
                    framing.missing(self._data, boundary, length)
                except FramingError as error:
                    found.append(f"byte {position + boundary}: {error}; what lies behind can't be framed")
                    return found
            position += boundary
            if position + length - boundary >= self._end:
                if boundary < length:
                    found.append(f"byte {position}: an unfinished message of {length - boundary} bytes")
                return found
            if not boundary:
                self._data = bytearray(2 * len(self._data))
        return found

    def _read(self, position: int) -> int:
        length = min(len(self._data), self._end - position)
        return os.preadv(self._fd, [memoryview(self._data)[:length]], position)

    def _checksums(self) -> list[str]:
        for number, record in enumerate(self._records):
            crc, position = 0, record.start
            while position < record.end:
                length = min(len(self._data), record.end - position)
                view = memoryview(self._data)[:length]
                length = os.preadv(self._fd, [view], position)
                if not length:
                    break
                crc = zlib.crc32(view[:length], crc)
                position += length
            if crc != record.crc:
                what = "its last sample" if not number else "a commit"
                return [f"bytes {record.start} to {record.end} are not those of {what} in the journal"]
        return []


@click.command("tailsrv-check")
@click.argument("file", type=click.Path())
@click.option("--framing", type=click.Choice(FRAMINGS), help="Default: what the journal says, or newline.")
@click.option("--max-message-bytes", type=click.IntRange(1, 1 << 40), default=LONGEST_MESSAGE, show_default=True)
@click.version_option(package_name="tailsrv", message="%(prog)s %(version)s")
def command(file: str, **values: Any) -> int:  # noqa: ANN401 - click's signature
    """Say whether FILE and everything beside it agree: journal, commit mark, framing, index. Never writes."""
    report = check(file, **values)
    for fact in report.facts:
        click.echo(fact)
    for finding in report.findings:
        click.echo(f"finding: {finding}")
    if not report.findings:
        click.echo("in order")
    return 1 if report.findings else 0


def main() -> NoReturn:
    """Run the command."""
    run_command(command, "TAILSRV_CHECK")


if __name__ == "__main__":
    main()
