"""`tailsrv-check FILE`: whether a stream and everything beside it agree. Offline; never writes, waits or repairs.

What the journal says is compared with FILE's bytes and with the commit mark, every byte is framed, every producer's AT
must be a boundary, and the index is compared with what is there. All of it is sequential reading in large blocks; no
message is visited one by one where the framing can help it. A line for each finding; exit code 1 if there is one.
"""

from __future__ import annotations

import glob
import os
import stat
import struct
from typing import Any, Final, NoReturn

import click
import msgspec

from collator.journal import SUFFIX as JOURNAL_SUFFIX
from collator.journal import boot_id
from compose.walk import Walk
from indexer.verify import verify
from tailsrv_formats.commit_mark import MARK_BYTES
from tailsrv_formats.commit_mark import SUFFIX as MARK_SUFFIX
from tailsrv_formats.commit_mark import decode as decode_mark
from tailsrv_formats.errors import reason
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.journal import Journal, JournalError, decode, producers
from tailsrv_formats.quantities import format_size
from tailsrv_runtime.command import run_command
from tailsrv_runtime.files import KINDS, holder, open_regular
from tailsrv_runtime.option_types import Size
from tailsrv_runtime.options import version_option
from tailsrv_runtime.standard_error import one_line

LONGEST_JOURNAL: Final = 1 << 30
"""A journal of a million producers is a quarter of this before it is compacted."""

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
        fd = open_regular(path)
    except OSError as error:
        report.findings.append(f"{path}: cannot be read: {reason(error)}; a stream is a regular file that grows")
        return report
    try:
        before = _state(path)
        busy = holder(fd) is not None
        _Check(path, fd, report).run(framing, max_message_bytes)
        # /proc/locks does not show processes of other containers, but their work shows.
        if busy or _state(path) != before:
            report.facts.insert(0, "a writer is at work: what is found may be of this moment alone")
    finally:
        os.close(fd)
    return report


def _state(path: str) -> list[tuple[int, int] | None]:
    """What changes when somebody writes."""
    state: list[tuple[int, int] | None] = []
    for suffix in ("", MARK_SUFFIX, JOURNAL_SUFFIX):
        try:
            status = os.stat(path + suffix)
        except OSError:
            state.append(None)
        else:
            state.append((status.st_size, status.st_mtime_ns))
    return state


class _Check:
    def __init__(self, path: str, fd: int, report: Report) -> None:
        self._path = path
        self._fd = fd
        self._report = report
        # What is beside it first: a writer at work only ever makes FILE longer than they say.
        self._mark = self._read_mark()
        self._content = self._read(JOURNAL_SUFFIX, LONGEST_JOURNAL)
        self._size = os.fstat(fd).st_size

    def run(self, framing: str | None, max_message_bytes: int) -> None:
        journal = self._decode_journal()
        if journal is not None:
            if framing is not None and framing != journal.header.framing:
                self._found(f"{self._path}{JOURNAL_SUFFIX}: the stream has framing {journal.header.framing}")
            framing = framing or journal.header.framing
        committed = self._compare_lengths(journal)
        known = {} if journal is None else self._decode_producers(journal)
        framed = make_framing(framing or FRAMINGS[0], max_message_bytes)
        records = [record for record in journal.records if record.end <= self._size] if journal is not None else []
        walk = Walk(self._fd, committed, framed, records, _boundaries(known, committed))
        for finding in walk.run():
            self._found(f"{self._path}: {finding}")
        self._fact(
            f"{self._path}: {self._size} bytes, {committed} committed, {walk.messages} messages ({framed.name}),"
            f" {self._size - committed} bytes beyond"
        )
        self._tell_producers(known, committed)
        self._tell_rescued()
        if journal is not None or framing is not None:
            self._report.findings += verify(self._path, framing=framed.name, max_message_bytes=max_message_bytes)
        else:
            self._report.findings += verify(self._path, max_message_bytes=max_message_bytes)

    # --- what is beside it

    def _read(self, suffix: str, most: int) -> bytes | None:
        """The first `most` bytes of a companion; None without a readable one."""
        name = self._path + suffix
        try:
            fd = open_regular(name, follow=False)
            with open(fd, "rb") as file:
                size = os.fstat(fd).st_size
                if size > LONGEST_JOURNAL:
                    self._found(f"{name}: has {size} bytes, and is not looked at: {LONGEST_JOURNAL} are the most")
                    return None
                return file.read(most)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._found(f"{name}: cannot be read: {reason(error)}")
        except MemoryError:
            self._found(f"{name}: does not fit into memory")
        return None

    def _read_mark(self) -> int | None:
        content = self._read(MARK_SUFFIX, MARK_BYTES)
        if content is None:
            return None
        mark = decode_mark(content)
        if mark is None:
            self._found(f"{self._path}{MARK_SUFFIX}: neither of its lines is valid: consumers see nothing new")
        return mark

    def _decode_journal(self) -> Journal | None:
        name = self._path + JOURNAL_SUFFIX
        if self._content is None:
            if not any(finding.startswith(f"{name}: ") for finding in self._report.findings):
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

    def _decode_producers(self, journal: Journal) -> dict[bytes, tuple[int, int]]:
        try:
            return producers(self._content or b"", journal, len(journal.records))
        except (ValueError, IndexError, struct.error):
            self._found(f"{self._path}{JOURNAL_SUFFIX}: a record names a producer that does not exist, or too many")
            return {}

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

    def _tell_rescued(self) -> None:
        for rescued in sorted(glob.glob(glob.escape(self._path) + ".rescued-*")):
            try:
                status = os.lstat(rescued)
            except OSError:
                continue  # it has just been removed
            kind = KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                self._fact(f"{rescued}: {status.st_size} bytes that a start or a stranger's write left aside")
            else:
                self._found(f"{rescued}: is {kind}, and nothing that a recovery left")

    def _fact(self, text: str) -> None:
        self._report.facts.append(text)

    def _found(self, text: str) -> None:
        self._report.findings.append(text)


def _boundaries(known: dict[bytes, tuple[int, int]], committed: int) -> dict[int, str]:
    """Offsets that have to be boundaries, in ascending order, and why."""
    wanted = {at: f"producer {name.decode('ascii', 'replace')}'s AT" for name, (_, at) in known.items()}
    return {at: wanted[at] for at in sorted(wanted) if 0 < at <= committed}


@click.command("tailsrv-check")
@click.argument("file", type=click.Path(readable=False))  # what it is, `check` says
@click.option(
    "--framing",
    type=click.Choice(FRAMINGS),
    help="How messages are delimited (default: as the journal records it, or newline).",
)
@click.option(
    "--max-message-bytes",
    type=Size(1, 1 << 40),
    default=format_size(LONGEST_MESSAGE),
    show_default=True,
    help="Largest valid message, including its terminator or prefix; a longer one is a finding.",
)
@version_option
def command(file: str, **values: Any) -> int:  # noqa: ANN401 - click's signature
    """Say whether FILE and everything beside it agree: journal, commit mark, framing, index. Never writes."""
    report = check(file, **values)
    lines = [*report.facts, *(f"finding: {finding}" for finding in report.findings)]
    if not report.findings:
        lines.append("in order")
    try:
        click.echo("\n".join(map(one_line, lines)))
    except BrokenPipeError:  # whoever reads it has seen enough; the exit code still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
    return 1 if report.findings else 0


def main() -> NoReturn:
    """Run the command."""
    run_command(command, "TAILSRV_CHECK")


if __name__ == "__main__":
    main()
