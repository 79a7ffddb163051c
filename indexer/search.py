"""A search in a sorted file of entries, a block of them at a time.

Knows no files: blocks are read by a function. The words of entries are only compared, never used otherwise.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from tailsrv_formats.index_file import ENTRY_BYTES, Words, unpack_from

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_BLOCK: Final = 16
"""Entries that the first step of a search reads: where messages are equally long, the right ones are among them."""
BLOCK: Final = 128
"""Entries that a further step reads: 3 KiB, which take hardly longer than one entry does."""
EVEN_TRIES: Final = 4
"""Steps that go where an entry should be, as far as one knows. Where that leads nowhere, it is looked for by halves."""

NUMBER: Final = 0
OFFSET: Final = 8
TIME: Final = 16
"""Where these words are in an entry."""

_word: Final = struct.Struct(">Q").unpack_from
_NO_TOP_BIT: Final = (1 << 63) - 1
_ALL_BITS: Final = (1 << 64) - 1


class Sought(NamedTuple):
    """The last entry whose `word` is at most `value`."""

    value: int
    first: int
    """What the words are from,"""
    last: int
    """and to, about: they are thought to lie evenly between."""
    word: int
    """`NUMBER`, `OFFSET` or `TIME`."""


class Place(NamedTuple):
    """An entry, and the next one, as they are stored."""

    position: int
    """Of the first of the two; -1 where that would be before the first entry."""
    here: Words | None
    there: Words | None
    """None behind the last entry."""


def search(block_of: Callable[[int, int], bytes], count: int, sought: Sought) -> Place | int:
    """Search among `count` entries, of which ``block_of(position, how_many)`` reads some.

    Returns the entry and the next one; where these were not read together, the position of the first of them alone.
    Of the two entries of the result, one word is at most `value` and the other one is above it, whatever the words
    of other entries are: so one of the two is wrong if the result is.
    """
    value, first, last, word = sought
    low, high, tries, wanted = 0, count, 0, FIRST_BLOCK
    span, base, at = max(1, last - first), first, 0
    mask, entries = _NO_TOP_BIT if word == TIME else _ALL_BITS, high
    while low < high:
        guess = at + (value - base) * entries // span if tries < EVEN_TRIES else (low + high) // 2
        size = min(wanted, high - low)
        at = max(low, min(guess - size // 2, high - size))
        block = block_of(at, size)
        base = _word(block, word)[0] & mask
        if base > value:
            high = at
        elif _word(block, (size - 1) * ENTRY_BYTES + word)[0] & mask <= value:
            low = at + size
        else:
            left, right = 0, size - 1
            while right - left > 1:
                middle = (left + right) // 2
                if _word(block, middle * ENTRY_BYTES + word)[0] & mask > value:
                    right = middle
                else:
                    left = middle
            return Place(at + left, unpack_from(block, left * ENTRY_BYTES), unpack_from(block, right * ENTRY_BYTES))
        tries, wanted = tries + 1, BLOCK
    return low - 1
