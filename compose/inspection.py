"""The check of a stream and the files beside it: do they agree? Offline; never writes, waits or repairs.

The journal is compared with FILE's bytes and with the commit mark, all committed bytes are framed, every producer's AT
must be a message boundary, and the index is compared with the messages. FILE is read sequentially, in large blocks.
"""

from __future__ import annotations

import glob
import os
import stat
import struct
from typing import Final

from collator.journal import SUFFIX as JOURNAL_SUFFIX
from collator.journal import boot_id
from compose.report import Producer, Report, Rescued
from compose.walk import Walk
from indexer.verifier import verify
from tailsrv_formats.commit_mark import MARK_BYTES
from tailsrv_formats.commit_mark import SUFFIX as MARK_SUFFIX
from tailsrv_formats.commit_mark import decode as decode_mark
from tailsrv_formats.errors import reason
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.journal import Journal, JournalError, decode, producers
from tailsrv_runtime.files import KINDS, holder, open_regular

LONGEST_JOURNAL: Final = 1 << 30
"""Bytes. A journal of a million producers has a quarter of this before it is compacted."""

LONGEST_MESSAGE: Final = 1 << 26
"""The default of the largest valid message: that of the indexer."""


def check(path: str, *, framing: str | None = None, max_message_bytes: int = LONGEST_MESSAGE) -> Report:
    """Check the stream at `path`. `framing`: None means the framing that the journal records, or else newline."""
    report = Report(path)
    try:
        fd = open_regular(path)
    except OSError as error:
        report.findings.append(f"{path}: cannot be read: {reason(error)}; a stream is a regular file")
        return report
    try:
        before = _state(path)
        busy = holder(fd) is not None
        _Check(path, fd, report).run(framing, max_message_bytes)
        # /proc/locks does not show processes of other containers, but sizes and times show what they do.
        report.writer_active = busy or _state(path) != before
    finally:
        os.close(fd)
    return report


def _state(path: str) -> list[tuple[int, int] | None]:
    """Sizes and times, which change when a writer is active."""
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
        # Before FILE's size: an active writer makes FILE longer than mark and journal state, never shorter.
        self._mark = self._read_mark()
        self._has_mark = os.path.lexists(path + MARK_SUFFIX)
        self._content = self._read(JOURNAL_SUFFIX, LONGEST_JOURNAL)
        self._size = os.fstat(fd).st_size

    def run(self, framing: str | None, max_message_bytes: int) -> None:
        journal = self._decode_journal()
        if journal is not None:
            if framing is not None and framing != journal.header.framing:
                self._found(f"{self._path}{JOURNAL_SUFFIX}: records framing {journal.header.framing}, not {framing}")
            framing = framing or journal.header.framing
        committed = self._compare_lengths(journal)
        known = {} if journal is None else self._decode_producers(journal)
        framed = make_framing(framing or FRAMINGS[0], max_message_bytes)
        records = [record for record in journal.records if record.end <= self._size] if journal is not None else []
        walk = Walk(self._fd, committed, framed, records, _boundaries(known, committed))
        for finding in walk.run():
            self._found(f"{self._path}: {finding}")
        report = self._report
        report.framing, report.journal = framed.name, journal is not None
        report.bytes, report.committed, report.messages = self._size, committed, walk.messages
        self._check_producers(known, committed)
        self._list_rescued()
        is_known = journal is not None or framing is not None
        report.findings += verify(
            self._path,
            end=committed,
            framing=framed.name if is_known else None,
            max_message_bytes=max_message_bytes,
        )

    # --- the files beside it

    def _read(self, suffix: str, most: int) -> bytes | None:
        """The first `most` bytes of a file beside the stream; None if it is missing or cannot be read."""
        name = self._path + suffix
        try:
            fd = open_regular(name, follow=False)
            with open(fd, "rb") as file:
                size = os.fstat(fd).st_size
                if size > LONGEST_JOURNAL:
                    self._found(f"{name}: not checked: it has {size} bytes, and the limit is {LONGEST_JOURNAL}")
                    return None
                return file.read(min(most, size))  # Python allocates what is asked for, at once
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
            self._found(f"{self._path}{MARK_SUFFIX}: neither of its lines is valid, so consumers receive no new bytes")
        return mark

    def _decode_journal(self) -> Journal | None:
        name = self._path + JOURNAL_SUFFIX
        if self._content is None:
            return None
        try:
            journal = decode(self._content, boot_id())
            make_framing(journal.header.framing)
        except (JournalError, ValueError) as error:
            self._found(f"{name}: {error}")
            return None
        if journal.torn:
            self._found(
                f"{name}: {journal.torn} bytes after its last record are an incomplete record: a crash interrupted it"
            )
        return journal

    def _decode_producers(self, journal: Journal) -> dict[bytes, tuple[int, int]]:
        try:
            return producers(self._content or b"", journal, len(journal.records))
        except (ValueError, IndexError, struct.error):
            self._found(
                f"{self._path}{JOURNAL_SUFFIX}: a record refers to a producer that does not exist, or to too many"
            )
            return {}

    def _compare_lengths(self, journal: Journal | None) -> int:
        """How far the stream is committed, after a comparison of size, commit mark and journal."""
        path, size, mark = self._path, self._size, self._mark
        committed = size if mark is None else mark
        if mark is not None and mark > size:
            self._found(f"{path}: has {size} bytes, but consumers may have seen {mark}")
        if journal is not None:
            end = journal.records[-1].end
            if end > size:
                self._found(f"{path}: has {size} bytes, but its journal covers {end}")
            if mark is None:
                committed = end
                if not self._has_mark:  # what is wrong with one that exists is a finding already
                    self._found(f"{path}{MARK_SUFFIX}: is missing: consumers receive uncommitted bytes")
            elif mark > end:
                self._found(f"{path}{MARK_SUFFIX}: commits {mark} bytes, but the journal covers {end}")
            elif mark < end:
                self._found(f"{path}{MARK_SUFFIX}: commits {mark} bytes, but the journal covers {end}: consumers lag")
                committed = end
        committed = min(committed, size)
        if size > committed:
            self._found(f"{path}: {size - committed} bytes from byte {committed} on are not committed")
        return committed

    def _check_producers(self, known: dict[bytes, tuple[int, int]], committed: int) -> None:
        for name, (acked, at) in sorted(known.items()):
            producer = Producer(name.decode("ascii", "replace"), acked, at)
            self._report.producers.append(producer)
            if at > committed or acked > at:
                self._found(
                    f"producer {producer.name}: {acked} bytes up to byte {at} are impossible: {committed} are committed"
                )
        if sum(acked for acked, _ in known.values()) > committed:
            self._found(f"{self._path}: more bytes are acknowledged to producers than are committed")

    def _list_rescued(self) -> None:
        for path in sorted(glob.glob(glob.escape(self._path) + ".rescued-*")):
            try:
                status = os.lstat(path)
            except OSError:
                continue  # removed since
            kind = KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                self._report.rescued.append(Rescued(path, status.st_size))
            else:
                self._found(f"{path}: is {kind}, not a file of rescued bytes")

    def _found(self, text: str) -> None:
        self._report.findings.append(text)


def _boundaries(known: dict[bytes, tuple[int, int]], committed: int) -> dict[int, str]:
    """Offsets that have to be message boundaries, in ascending order, each with the reason."""
    wanted = {at: f"producer {name.decode('ascii', 'replace')}'s AT" for name, (_, at) in known.items()}
    return {at: wanted[at] for at in sorted(wanted) if 0 < at <= committed}
