"""Judges a file against what the producers sent and heard: lost, twice, torn, changed.

An independent reading of the protocol: it parses the file's framing itself and takes each message for what
its bytes say. It does not know the collator, its journal, or where commits were.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from tests.faults.messages import next_payload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tests.faults.messages import Stream

_NAMED = re.compile(rb"([A-Za-z0-9]|<\d+>)\.(\d{10})\.(\d{6})\.[0-9a-f]{16}")
_KEPT_NOTES = 12
_PLAUSIBLE = 100_000  # messages; a number further off than this is no number of a message


@dataclass
class Findings:
    """What a run has shown. All but the first are promises broken, in messages (changed: in bytes)."""

    acknowledged: int = 0
    lost: int = 0
    twice: int = 0
    torn: int = 0
    changed: int = 0
    other: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """How many findings of any kind there are."""
        return self.lost + self.twice + self.torn + self.changed + self.other

    def note(self, text: str) -> None:
        """Keep an explanation of a finding, for the first few."""
        if len(self.notes) < _KEPT_NOTES:
            self.notes.append(text)

    def add(self, more: Findings) -> None:
        """Add another run's findings to these."""
        self.acknowledged += more.acknowledged
        self.lost += more.lost
        self.twice += more.twice
        self.torn += more.torn
        self.changed += more.changed
        self.other += more.other
        for text in more.notes:
            self.note(text)


class _Reach:
    """How far one producer's messages have been found in the file, in their order."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.next = self._skip_empty(0)

    def _skip_empty(self, sequence: int) -> int:
        while self.stream.is_empty(sequence):
            sequence += 1
        return sequence

    def go_behind(self, sequence: int) -> None:
        self.next = self._skip_empty(sequence + 1)

    def certain(self) -> int:
        """How many messages are certainly there: up to the last one that names its producer."""
        count = self.next
        while count and self.stream.is_empty(count - 1):
            count -= 1
        return count


def check_file(
    path: Path, streams: Iterable[Stream], acknowledged: Mapping[str, int], *, complete: bool = False
) -> Findings:
    """Check the whole file; `acknowledged`: bytes of each producer's stream that it was promised, by name.

    `complete`: everything that the producers sent has been acknowledged, so the file holds nothing else either.
    """
    data = _held(path)
    reaches = {stream.tag: _Reach(stream) for stream in streams}
    framing = next(iter(reaches.values())).stream.framing
    found = Findings()
    empties = at = 0
    while at < len(data):
        spans = next_payload(framing, data, at)
        if spans is None:
            found.torn += 1
            found.note(f"{path.name}: the last {len(data) - at} bytes, from {at}, are no whole message")
            break
        start, end, after = spans
        if start == end:
            empties += 1
        else:
            _take(data[start:end], at, reaches, found)
        at = after
    _compare(reaches.values(), acknowledged, empties, found, complete=complete)
    return found


def _take(payload: bytes, at: int, reaches: Mapping[str, _Reach], found: Findings) -> None:
    """Attribute one message to its producer and compare it with the one that is due from there."""
    named = _NAMED.match(payload)
    tag = named[1].decode() if named else chr(payload[0])
    reach = reaches.get(tag)
    if reach is None:
        found.torn += 1
        found.note(f"byte {at}: {payload[:60]!r} ({len(payload)} bytes) is from no producer")
        return
    if payload == reach.stream.payload(reach.next):
        reach.go_behind(reach.next)
        return
    sequence = int(named[2]) if named else _earlier(payload, reach)
    if sequence is None or sequence > reach.next + _PLAUSIBLE or payload != reach.stream.payload(sequence):
        found.torn += 1
        found.note(f"byte {at}: {payload[:60]!r} ({len(payload)} bytes) is no whole message of {tag}")
    elif sequence < reach.next:
        found.twice += 1
        found.note(f"byte {at}: message {sequence} of {tag} stands again, or late ({reach.next} is due)")
    else:
        found.lost += sequence - reach.next
        found.note(f"byte {at}: message {sequence} of {tag}, where {reach.next} is due")
        reach.go_behind(sequence)


def _earlier(payload: bytes, reach: _Reach) -> int | None:
    """Find a message too short to carry its number among those that stood shortly before, or are due soon."""
    near = range(max(0, reach.next - 400), reach.next + 400)
    same = [sequence for sequence in near if reach.stream.payload(sequence) == payload]
    return min(same, key=lambda sequence: abs(sequence - reach.next)) if same else None


def _compare(
    reaches: Iterable[_Reach], acknowledged: Mapping[str, int], empties: int, found: Findings, *, complete: bool
) -> None:
    least = most = 0
    for reach in reaches:
        stream = reach.stream
        promised = acknowledged.get(stream.name, 0)
        count = stream.count_upto(promised)
        if count is None:
            found.other += 1
            found.note(f"{stream.name} was told {promised}, which is inside a message")
            continue
        found.acknowledged += count
        if count > reach.next:
            missing = sum(not stream.is_empty(number) for number in range(reach.next, count))
            found.lost += missing
            found.note(f"{stream.name}: acknowledged are {count} messages, the file holds {reach.next}")
        if complete and reach.certain() > count:
            found.twice += reach.certain() - count
            found.note(f"{stream.name}: the file holds {reach.certain()} messages, {count} were sent")
        sure = max(count, reach.certain())
        least += sum(stream.is_empty(number) for number in range(sure))
        most += sum(stream.is_empty(number) for number in range(max(sure, reach.next)))
    if complete:
        most = least
    if empties < least:
        found.lost += least - empties
        found.note(f"{empties} empty messages, at least {least} are acknowledged")
    if empties > most:
        found.twice += empties - most
        found.note(f"{empties} empty messages, {most} were sent")


def _held(path: Path) -> bytes:
    """Give what the file holds; one that is missing, or cannot be read any more, holds nothing."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def check_seen(path: Path, seen: Path, *, start: int = 0) -> Findings:
    """Check that what a consumer has seen is what the file holds at that offset, from byte `start` on."""
    found = Findings()
    with seen.open("rb") as kept, contextlib.ExitStack() as opened:
        file: BinaryIO = io.BytesIO()
        with contextlib.suppress(OSError):  # as in `_held`
            file = opened.enter_context(path.open("rb", buffering=0))
        kept.seek(start)
        at = start
        while was := kept.read(1 << 20):
            now = b""
            with contextlib.suppress(OSError):
                file.seek(at)
                now = file.read(len(was))
            if now != was:
                wrong = sum(a != b for a, b in zip(was, now, strict=False)) + len(was) - len(now)
                found.changed += wrong
                found.note(f"{path.name}: {wrong} of the bytes seen at {at} to {at + len(was)} are gone or others")
            at += len(was)
    return found
