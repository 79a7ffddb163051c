"""Fuzz target: the journal's decoder.

Invariant: whatever was done to a journal, `decode` returns records that were written, from the first one on and without
a gap, or raises `JournalError`; `producers` then knows all names of these records. A journal whose end alone is cut off
or overwritten is never called damaged by itself.

    python -m tests.fuzz.fuzz_journal [atheris' options]
"""

from __future__ import annotations

from tailsrv_formats.journal import (
    BY_NUMBER,
    Header,
    JournalError,
    Record,
    decode,
    encode_named,
    encode_record,
    producers,
    seed,
)
from tests.fuzz.campaign import run

COMMITS = 20


def sample(sync: str = "always") -> tuple[bytes, list[Record]]:
    """A journal of a few commits by three producers, and its records."""
    header = Header(bytes(range(16)), b"B" * 16, "newline", sync).encode()
    seeded = seed(header)
    named = [encode_named(name, 10, 30) for name in (b"ada", b"bob", b"eve")]
    records = [Record(0, 30, 30, 7)]
    content = header + encode_record(seeded, records[0], (), named)
    for commit in range(1, COMMITS):
        end = records[-1].end
        records.append(Record(end, end + commit, end, commit))
        moved = [BY_NUMBER.pack(commit % 3, 10 + commit, end + commit)]
        content += encode_record(seeded, records[-1], moved, [encode_named(b"new-%d" % commit, 1, end)])
    return content + bytes(512), records


def assert_input(data: bytes) -> None:
    """Apply edits of three bytes each (where, where, what) to a journal, or take the data for one; read it."""
    content, records = sample()
    edited = bytearray(content)
    for index in range(0, len(data) - 2, 3):
        edited[int.from_bytes(data[index : index + 2], "big") % len(edited)] = data[index + 2]
    for journal_bytes in (data, bytes(edited), content[: int.from_bytes(data[:2], "big")]):
        try:
            journal = decode(journal_bytes, b"B" * 16)
        except JournalError:
            continue
        assert journal.records == records[: len(journal.records)]
        names = producers(journal_bytes, journal, len(journal.records))
        assert len(names) == 2 + len(journal.records)


if __name__ == "__main__":
    run(assert_input)
