"""The decision of a recovery: where the stream ends after the last collator stopped or crashed.

`decide` is a pure function of the journal, the commit mark and FILE. The stream ends with the last record that FILE
verifies. It never ends below what consumers have seen while FILE still has those bytes: `decide` refuses instead, and
an operator decides.

The traces of a crash, with `--sync always`:

    killed during or after the append to FILE   FILE is longer than the last record states: its end is rescued
    power cut, FILE's blocks were written first the same
    power cut, the journal's blocks came first  FILE does not verify the last record: the one before it counts
    killed before the commit mark moved         the commit mark is below the journal's end: it moves

In all of these cases there is a commit mark. It distinguishes a record that a crash has torn, whose bytes no consumer
has seen, from a record that was damaged later. Without a commit mark, a stream is only accepted if every byte agrees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_formats.journal import Journal, Record


class RefusedError(Exception):
    """No automatic decision would keep all promises; an operator has to decide."""


class Decision(msgspec.Struct, frozen=True):
    """The end of the stream."""

    end: int
    records: int
    """The number of valid records in the journal."""
    finding: str
    """The reason, for the log."""
    lost: int = 0
    """Bytes that consumers may have seen and that FILE does not have any more."""


def decide(
    journal: Journal, size: int, mark: int | None, verifies: Callable[[Record], bool], *, same_boot: bool
) -> Decision:
    """Decide where the stream with this journal ends.

    `size`: the length of FILE. `mark`: the commit mark, if there is one. ``verifies(record)``: whether FILE has the
    bytes that the record covers. `same_boot`: whether the journal was written in this boot. Raises `RefusedError`.
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
            return Decision(seen, last_valid + 1, "the commit mark reached the disk and the journal did not")
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
    """The index of the last record up to which FILE verifies all; -1 if it verifies none."""
    records = journal.records
    last = len(records) - 1
    if same_boot and journal.header.sync == "never":
        # The kernel that accepted these bytes in this order still runs: if a record is there, so are all before it.
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
