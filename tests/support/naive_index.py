"""A stream read naively: every answer of an index is compared with it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.index_file import CONTEXT_BYTES, fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence


class Truth:
    """A stream, read naively: every message's offset in a list."""

    def __init__(self, framing: str, payloads: Sequence[bytes]) -> None:
        wrap = make_framing(framing, 1 << 30).wrap
        self.framing = framing
        self.messages = [wrap(payload) for payload in payloads]
        self.content = b"".join(self.messages)
        self.offsets = [0]
        for message in self.messages:
            self.offsets.append(self.offsets[-1] + len(message))
        self.count = len(self.messages)
        self.end = len(self.content)

    def entries(self, interval: int, seed: int) -> list[int]:
        """The raw entries that its index has to hold: the first boundary in each interval, but for offset 0."""
        raw: list[int] = []
        current = 0
        for number, offset in enumerate(self.offsets):
            if offset // interval > current:
                current = offset // interval
                raw += (number, offset, fingerprint(self.content[max(0, offset - CONTEXT_BYTES) : offset], seed))
        return raw

    def holder(self, byte: int) -> int:
        """The number of the message that holds this byte."""
        return next(number for number, offset in enumerate(self.offsets) if offset > byte) - 1


def framings() -> st.SearchStrategy[str]:
    return st.sampled_from(FRAMINGS)


def payload_lists() -> st.SearchStrategy[list[bytes]]:
    """Messages of every length that matters where an interval has some dozen bytes: empty, short, many intervals."""
    sizes = st.one_of(st.just(0), st.integers(0, 12), st.integers(50, 70), st.sampled_from((127, 128, 129, 300, 1000)))
    return st.lists(sizes.map(lambda size: random.Random(size).randbytes(size).translate(_PLAIN)), max_size=60)


_PLAIN = bytes(range(65, 91)) * 9 + bytes(range(65, 87))
"""A translation to letters, so that no payload holds a terminator."""


def lines(count: int, begin: int = 0, width: int = 20) -> list[bytes]:
    """Payloads that say which they are."""
    return [b"%0*d" % (width + number % 7, number) for number in range(begin, begin + count)]
