"""The progress of producers on the acknowledged port: how many bytes of each stream are committed, and where."""

from __future__ import annotations

from typing import Protocol


class Progress:
    """The progress of one producer's stream. That of a named producer outlives its connections and the daemon."""

    __slots__ = ("acked", "at", "gathered", "in_flight", "number")

    def __init__(self, acked: int = 0, at: int = 0) -> None:
        self.acked = acked
        """Committed bytes of its stream."""
        self.at = at
        """The offset in FILE where they end."""
        self.gathered = acked
        """Bytes of its stream that are committed or in a batch."""
        self.in_flight = 0
        """The number of uncommitted batches that hold bytes of it."""
        self.number = -1
        """Its number in the journal; -1 while the journal does not contain it."""

    def line(self) -> bytes:
        """The line that acknowledges it."""
        return b"%d %d\n" % (self.acked, self.at)


class Contributor(Protocol):
    """A producer that is acknowledged for its bytes in a batch."""

    name: bytes
    """Empty for an anonymous producer."""
    progress: Progress

    def committed(self, runs: list[int]) -> None:
        """Acknowledge these bytes of a committed batch; see `note_run`."""

    def abort(self) -> None:
        """Close it after an unexpected error in the work for it."""


def note_run(runs: list[int], acked: int, start: int, end: int) -> None:
    """Note in `runs` (pairs ACKED, AT) that the bytes of a stream up to `acked` are at `start` to `end` of FILE.

    A line promises that the bytes since the line before it are contiguous in FILE. So bytes that directly follow the
    last run extend it, and every other run gets a line of its own.
    """
    if runs and runs[-1] == start:
        runs[-2] = acked
        runs[-1] = end
    else:
        runs += (acked, end)
