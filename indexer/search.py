"""A search in a sorted file of entries, a run of them at a time: interpolation, then bisection.

Knows no files: a function reads the entries. Their words are only compared here, never used otherwise.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from tailsrv_formats.index_file import TIME_MASK, Words, unpack_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FIRST_PROBE: Final = 16
"""Entries that the first step reads: if messages are equally long, the two that are sought are among them."""
PROBE: Final = 128
"""Entries that a further step reads: 3 KiB, which take hardly longer than one entry does."""
INTERPOLATIONS: Final = 4
"""Steps that interpolate. If these lead nowhere, the entries are not spread evenly, and the search bisects."""

NUMBER: Final = 0
OFFSET: Final = 1
TIME: Final = 2
"""Which of an entry's words this is."""


class Bracket(NamedTuple):
    """Two neighbouring entries, as they are stored."""

    position: int
    """Of the first of the two; -1 if that would be before the first entry."""
    here: Words | None
    there: Words | None
    """None after the last entry."""


def search(
    read_entries: Callable[[int, int], bytes], count: int, value: int, *, first: int, last: int, word: int
) -> Bracket | int:
    """Search among `count` entries for the last one whose `word` is at most `value`.

    ``read_entries(position, count)`` reads some of them. `word`: `NUMBER`, `OFFSET` or `TIME`; the entries' words are
    taken to be spread evenly from `first` to about `last`.

    Returns the entry and the next one; if these were not read together, the position of the first of them alone.
    One of the two is at most `value` and the other one is above it, whatever the words of other entries are: so if the
    result is wrong, one of these two entries is.
    """
    low, high, tries, wanted = 0, count, 0, FIRST_PROBE
    span, base, at = max(1, last - first), first, 0
    while low < high:
        guess = at + (value - base) * count // span if tries < INTERPOLATIONS else (low + high) // 2
        size = min(wanted, high - low)
        at = max(low, min(guess - size // 2, high - size))
        words = unpack_all(read_entries(at, size))
        keys: Sequence[int] = words[word::3]
        if word == TIME:
            keys = [key & TIME_MASK for key in keys]
        base = keys[0]
        if base > value:
            high = at
        elif keys[-1] <= value:
            low = at + size
        else:
            # Among keys that are out of order, this ends between two neighbours as described, too.
            left = bisect_right(keys, value) - 1
            a, b, c, d, e, f = words[3 * left : 3 * left + 6]
            return Bracket(at + left, (a, b, c), (d, e, f))
        tries, wanted = tries + 1, PROBE
    return low - 1
