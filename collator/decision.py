"""Where the stream goes on after whatever ended the last collator.

`decide` is pure: from what the journal, the commit mark and FILE say it takes the offset where the stream ends. It goes
back to the last record that FILE bears out, and never below what consumers have seen while FILE still has those bytes:
rather than that it refuses, and an operator decides.

How each order of a crash looks, with `--sync always`:

    killed while or after FILE is written       FILE is longer than the last record says: rescued
    power cut, FILE's blocks came first         the same
    power cut, the journal's blocks came first  FILE does not bear out the last record: the one before counts
    killed before the mark moved                the mark is behind the journal: it is moved

In all of them there is a mark. It tells a record that a crash tore, which nobody has seen, from one that was damaged
later: without a mark, a stream is taken only if all is in order, to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_formats.journal import Journal, Record


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
    journal: Journal, size: int, mark: int | None, verifies: Callable[[Record], bool], *, same_boot: bool
) -> Decision:
    """Where the stream ends that has this journal.

    `size`: bytes in FILE. `mark`: how far consumers may have read, if known. ``verifies(record)``: whether FILE
    holds that record's bytes. `same_boot`: no power was lost since. Raises `RefusedError`.
    """
    records = journal.records
    last = len(records) - 1
    last_valid = _last_valid(journal, verifies, same_boot=same_boot)
    if last_valid < 0:
        if size < records[0].end:
            raise RefusedError(f"FILE has {size} bytes, but the journal begins at byte {records[0].end}")
        raise RefusedError("the checksums of the journal do not match FILE: the journal belongs to another file")
    end = records[last_valid].end
    power_lost = journal.header.sync != "always" and not same_boot
    seen = max(mark or 0, records[last].synced)
    if not end and seen and not power_lost:
        raise RefusedError(f"FILE holds none of the {seen} bytes that the journal and the commit mark record")
    if seen > end and size >= seen and not (power_lost and last_valid < last):
        if power_lost:
            return Decision(seen, last_valid + 1, "the mark reached the disk and the journal did not")
        raise RefusedError(f"consumers may have seen FILE up to byte {seen}, but the journal verifies only {end} bytes")
    if mark is None and (journal.torn or last_valid < last or size != end):
        raise RefusedError(
            f"the commit mark is missing, so it is unknown whether the bytes after {end}, the end of the last valid"
            " record, were acknowledged and seen; restore FILE.commit if there is a copy"
        )
    if seen > end:
        return Decision(end, last_valid + 1, "FILE lost bytes that were committed", lost=seen - end)
    if last_valid < last:
        return Decision(end, last_valid + 1, "the last commit did not reach FILE")
    if size > end:
        return Decision(end, last_valid + 1, "bytes that were not committed")
    return Decision(end, last_valid + 1, "a torn journal record" if journal.torn else "in order")


def _last_valid(journal: Journal, verifies: Callable[[Record], bool], *, same_boot: bool) -> int:
    """The last record up to which FILE bears out all; -1 when it bears out none."""
    records = journal.records
    last = len(records) - 1
    if same_boot and journal.header.sync == "never":
        # The kernel that took these bytes still runs, and took them in this order: what is there has all before it.
        return next((index for index in range(last, -1, -1) if verifies(records[index])), -1)
    durable = last
    while durable > 0 and records[durable].end > records[last].synced:
        durable -= 1
    last_valid = durable
    while last_valid >= 0 and not verifies(records[last_valid]):
        last_valid -= 1
    if last_valid < durable:
        return last_valid
    while last_valid < last and verifies(records[last_valid + 1]):
        last_valid += 1
    return last_valid
