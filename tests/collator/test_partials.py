"""The incomplete message without progress for the longest time is the first to be dropped."""

from __future__ import annotations

from collator.batch_builder import Inbox
from collator.partials import PROGRESS_BYTES, Partials

MIB = 1 << 20


class Holder:
    """A source that is nothing but its incomplete message."""

    def __init__(self) -> None:
        self.inbox = Inbox()

    def holds(self, size: int) -> None:
        self.inbox.partial = b"x" * size


def test_the_message_without_progress_for_longest_is_first_even_if_its_producer_trickles() -> None:
    partials: Partials[Holder] = Partials()
    idle, trickling, sending, small = (Holder() for _ in range(4))
    for holder in (sending, trickling, idle, small):
        holder.holds(100)
        partials.note(holder, completed=False)
    for turn in range(1, 50):
        trickling.holds(100 + turn)
        partials.note(trickling, completed=False)
        sending.holds(100 + turn * PROGRESS_BYTES)
        partials.note(sending, completed=False)
        small.holds(50)
        partials.note(small, completed=True)  # a message whole, and another one begun
    order = []
    while (oldest := partials.oldest()) is not None:
        order.append(oldest[0])
        partials.forget(oldest[0])
    assert order == [trickling, idle, sending, small]


def test_a_producer_that_would_progress_if_it_were_read_from_is_dropped_last() -> None:
    partials: Partials[Holder] = Partials()
    sending, trickling, idle = Holder(), Holder(), Holder()
    for holder in (sending, trickling, idle):
        holder.holds(10)
        partials.note(holder, completed=False)
    partials.excuse(sending, PROGRESS_BYTES)
    partials.excuse(trickling, 1)
    for expected in (trickling, idle, sending):
        assert first(partials) is expected
        partials.forget(expected)


def first(partials: Partials[Holder]) -> Holder | None:
    found = partials.oldest()
    return None if found is None else found[0]


def test_a_producer_that_has_completed_its_message_is_not_dropped() -> None:
    partials: Partials[Holder] = Partials()
    holder = Holder()
    holder.holds(10)
    partials.note(holder, completed=False)
    holder.holds(0)
    partials.note(holder, completed=True)
    assert partials.oldest() is None
