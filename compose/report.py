"""What `tailsrv-check` found out about a stream, and its two forms: lines of text, and one JSON object.

The fields are a contract: docs/tailsrv-check.md describes them. Null means that a value could not be determined.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from tailsrv_runtime.standard_error import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator


class Producer(msgspec.Struct, frozen=True):
    """A producer that the journal knows."""

    name: str
    acked: int
    """Committed bytes of the producer's own stream."""
    at: int
    """The offset in FILE where they end."""


class Rescued(msgspec.Struct, frozen=True):
    """A file of bytes that a recovery took out of the stream."""

    path: str
    bytes: int


class Report(msgspec.Struct):
    """The state of a stream, and what does not agree."""

    file: str
    framing: str | None = None
    bytes: int | None = None
    """The size of FILE."""
    committed: int | None = None
    """The larger of the journal's end and the commit mark; without both, the size of FILE. At most the size."""
    messages: int | None = None
    """Whole messages among the committed bytes; up to the first byte that cannot be framed."""
    journal: bool = False
    """Whether there is a readable journal."""
    writer_active: bool = False
    """Whether a writer held FILE or changed it during the check: findings may be transient then."""
    producers: list[Producer] = []
    """Sorted by name."""
    rescued: list[Rescued] = []
    findings: list[str] = []
    """What does not agree, one sentence each."""

    @property
    def facts(self) -> list[str]:
        """All but the findings, one sentence each."""
        return list(self._facts())

    def _facts(self) -> Iterator[str]:
        if self.writer_active:
            yield "a writer is active: findings may be transient"
        if self.bytes is None or self.committed is None:
            return
        if not self.journal:
            yield f"{self.file}: no readable journal: the commit mark, or else the size, says what is committed"
        yield (
            f"{self.file}: {self.bytes} bytes, {self.committed} committed, {self.messages} messages ({self.framing}),"
            f" {self.bytes - self.committed} bytes uncommitted"
        )
        for producer in self.producers:
            yield f"producer {producer.name}: {producer.acked} bytes acknowledged, up to byte {producer.at}"
        for rescued in self.rescued:
            yield f"{rescued.path}: {rescued.bytes} rescued bytes (of a recovery, or written by another program)"

    def text(self) -> str:
        """Lines for people: the facts, then the findings. Names are escaped: a line is one fact or one finding."""
        lines = [*self._facts(), *(f"finding: {finding}" for finding in self.findings)]
        if not self.findings:
            lines.append("in order")
        return "\n".join(map(one_line, lines))

    def json(self) -> str:
        """One JSON object on one line, in ASCII. Undecodable bytes of names are lone surrogates, escaped."""
        return json.dumps({"ok": not self.findings, **msgspec.to_builtins(self)})
