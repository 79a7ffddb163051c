"""Read-ahead: a replay requests what is not in memory, and drops what no other replay needs."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, cast

import pytest

from tailsrv import page_cache
from tailsrv.page_cache import KEPT_BYTES, WINDOW_BYTES, ReadAhead
from tailsrv.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_runtime.stream import Stream


class FakeStream:
    """A stream whose descriptor is never used: the calls of the kernel are recorded."""

    fd = 99


class Advice:
    """The windows that were requested and dropped, by number; none is in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requested: list[int] = []
        self.dropped: list[int] = []
        monkeypatch.setattr(page_cache, "in_memory", lambda _fd, _offset: False)
        monkeypatch.setattr(os, "posix_fadvise", self._advise)

    def _advise(self, fd: int, offset: int, length: int, advice: int) -> None:
        assert fd == FakeStream.fd
        assert length <= WINDOW_BYTES
        if advice == os.POSIX_FADV_DONTNEED:
            self.dropped.append(offset // WINDOW_BYTES)
        elif offset % WINDOW_BYTES == 0:
            self.requested.append(offset // WINDOW_BYTES)


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> Advice:
    return Advice(monkeypatch)


@pytest.fixture
def other() -> Iterator[Subscriber]:
    with socket.socket() as sock:
        yield Subscriber(sock, "peer", lambda _subscriber, _mask: None)


def read_ahead(*replaying: Subscriber) -> ReadAhead:
    return ReadAhead(cast("Stream", FakeStream()), replaying)


def test_each_window_is_requested_once_before_it_is_reached_and_dropped_after_it_is_passed(advice: Advice) -> None:
    ahead = read_ahead()
    requested = 3
    for window in range(3, 8):
        requested = ahead.advance(window * WINDOW_BYTES + 5, requested)
        assert requested == window + 2
    assert advice.requested == [3, 4, 5, 6, 7, 8]
    assert advice.dropped == [3, 4, 5]


def test_a_window_that_another_replay_will_need_is_kept(advice: Advice, other: Subscriber) -> None:
    other.offset = 5
    ahead = read_ahead(other)
    requested = 0
    for window in range(5):
        requested = ahead.advance(window * WINDOW_BYTES, requested)
    assert advice.dropped == []
    other.offset = 100 * KEPT_BYTES
    ahead.advance(5 * WINDOW_BYTES, requested)
    assert advice.dropped == [3]


def test_a_window_that_is_in_memory_is_neither_requested_nor_dropped(
    advice: Advice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "in_memory", lambda _fd, _offset: True)
    ahead = read_ahead()
    requested = 0
    for window in range(5):
        requested = ahead.advance(window * WINDOW_BYTES, requested)
    assert advice.requested == advice.dropped == []


def test_after_forget_windows_of_earlier_replays_are_not_dropped(advice: Advice) -> None:
    ahead = read_ahead()
    ahead.advance(0, 0)
    ahead.forget()
    ahead.advance(2 * WINDOW_BYTES, 4)
    assert advice.dropped == []
