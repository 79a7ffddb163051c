"""The states of a subscriber follow the table in `tailsrv.subscriber`."""

from __future__ import annotations

import itertools
import socket

import pytest

from tailsrv.subscriber import NEXT, State, Subscriber


def in_state(state: State) -> Subscriber:
    """A subscriber that has reached this state by the shortest path."""
    paths = {State.AWAITING_HEADER: [State.AWAITING_HEADER]}
    while state not in paths:
        paths |= {new: [*path, new] for old, path in tuple(paths.items()) for new in NEXT[old] if new not in paths}
    with socket.socket() as sock:
        subscriber = Subscriber(sock, "peer", lambda _subscriber, _mask: None)
    for step in paths[state][1:]:
        subscriber.become(step)
    return subscriber


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_a_change_of_state_is_in_the_table_or_refused(old: State, new: State) -> None:
    subscriber = in_state(old)
    if new in NEXT[old]:
        subscriber.become(new)
        assert subscriber.state is new
    else:
        with pytest.raises(RuntimeError, match=f"{old} cannot become {new}"):
            subscriber.become(new)
        assert subscriber.state is old


def test_every_state_can_be_reached_and_only_the_last_cannot_be_left() -> None:
    assert {in_state(state).state for state in State} == set(State)
    assert [state for state in State if not NEXT[state]] == [State.ENDED]
