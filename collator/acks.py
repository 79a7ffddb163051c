"""How far each producer is."""

from __future__ import annotations


class Progress:
    """How far one producer's stream has come. Named ones outlive their connections, and the daemon."""

    __slots__ = ("acked", "at", "gathered", "in_flight", "number")

    def __init__(self, acked: int = 0, at: int = 0) -> None:
        self.acked = acked
        """Bytes of its stream that are committed."""
        self.at = at
        """The offset in the file where they end."""
        self.gathered = acked
        """Bytes of its stream that are committed or in a batch."""
        self.in_flight = 0
        """Batches under way that hold bytes of it."""
        self.number = -1
        """What the journal calls it; -1 while the journal does not know it."""

    def line(self) -> bytes:
        """What the producer is told."""
        return b"%d %d\n" % (self.acked, self.at)


def note_run(runs: list[int], acked: int, start: int, end: int) -> None:
    """Note in `runs` (pairs ACKED, AT) that bytes up to `acked` stand at `start` to `end` in the file.

    What stands right behind the last run extends it: a line says that the bytes since the line before stand
    contiguous, so each run gets a line of its own.
    """
    if runs and runs[-1] == start:
        runs[-2] = acked
        runs[-1] = end
    else:
        runs += (acked, end)
