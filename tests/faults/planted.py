"""The real collator with a bug planted at run time: patched in this process alone, never a switch in the product.

    python planted.py BUG FILE …        BUG: one of `BUGS`; the rest is tailsrv-collate's command line

`compacting` is no bug: it begins the journal anew after every few commits, so that crashes can hit that.
A bug whose place in the product has moved fails loudly: a name that is patched has to be there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started by path, as strace needs it


def _replace(owner: object, name: str, value: object) -> None:
    if not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no {name} to plant a bug in")
    setattr(owner, name, value)


def _pretend(_: int) -> None:
    """Sync nothing."""


def no_sync() -> None:
    """Nothing is ever synced."""
    _replace(os, "fdatasync", _pretend)
    _replace(os, "fsync", _pretend)


def ack_first() -> None:
    """Producers are told, and consumers see, what is not synced yet."""
    from collator.diskwriter import DiskWriter  # noqa: PLC0415  # each bug loads what it patches

    def write(self: DiskWriter) -> Any:
        errors = self._write_in_turn()
        self._reactor.post(self.sync_now)
        return errors

    _replace(DiskWriter, "write", write)


def no_repair() -> None:
    """A start goes on behind whatever FILE holds."""
    from collator import recovery  # noqa: PLC0415  # as above
    from collator.decision import Decision  # noqa: PLC0415  # as above

    def decide(journal: Any, size: int, *_: object, **__: object) -> Decision:  # not looked at
        return Decision(size, len(journal.records), "planted")

    _replace(recovery, "decide", decide)


def withdraw() -> None:
    """The mark moves before the bytes are there; what of them was shown goes away in a crash."""
    from collator.diskwriter import DiskWriter  # noqa: PLC0415  # as above
    from collator.sidecars import Sidecars  # noqa: PLC0415  # as above

    honest, start = DiskWriter._append, Sidecars.__init__
    marks: list[Any] = []

    def remember(self: Sidecars, *arguments: Any, **named: Any) -> None:
        start(self, *arguments, **named)
        marks.append(self.mark)

    def append(self: DiskWriter) -> None:
        marks[0].move(self.record.end)
        honest(self)

    _replace(Sidecars, "__init__", remember)
    _replace(DiskWriter, "_append", append)


def no_takeover() -> None:
    """A second connection with the same name leaves the first one alone."""
    from collator.names import Holder, Names  # noqa: PLC0415  # as above

    honest = Names.claim

    def claim(self: Names, holder: Holder) -> Any:
        self._holders.pop(holder.name, None)
        return honest(self, holder)

    _replace(Names, "claim", claim)


def forget() -> None:
    """The journal does not keep what producers were told."""
    from collator.journal import JournalFile  # noqa: PLC0415  # as above

    def entries(*_: object) -> tuple[list[bytes], list[bytes]]:
        return [], []

    _replace(JournalFile, "entries", entries)


def compacting() -> None:
    """Begin the journal anew all the time. No bug."""
    from collator import journal  # noqa: PLC0415  # as above

    _replace(journal, "GROWTH_BYTES", 300)
    _replace(journal, "GROWTH_FACTOR", 1)


BUGS: dict[str, Callable[[], None]] = {
    "no-sync": no_sync,
    "ack-first": ack_first,
    "no-repair": no_repair,
    "withdraw": withdraw,
    "no-takeover": no_takeover,
    "forget": forget,
    "compacting": compacting,
}


def main() -> NoReturn:
    """Plant, and run."""
    BUGS[sys.argv.pop(1)]()
    from collator.cli import main as collate  # noqa: PLC0415  # after the patches

    collate()


if __name__ == "__main__":
    main()
