"""A follower's states: the table in the docstring is the one in force, and every transition of it happens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from indexer import follower as module
from indexer import state
from indexer.errors import CorruptIndexError, NotFoundError
from indexer.follower import Follower
from indexer.options import Options
from indexer.state import NEXT, State
from indexer.stream_index import StreamIndex
from tailsrv_formats.framing import make_framing
from tailsrv_formats.index_query import Query
from tailsrv_runtime.reactor import Reactor
from tests.support.logs import RecordedLog
from tests.support.loops import turn_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = b"%099d\n" % 7
SMALL = LINE * 1000
LARGE = LINE * 30_000
READING = {State.CATCHING_UP, State.BUILDING, State.LIVE, State.CORRUPT}
GROUPS = {
    "READING": READING,
    "VERIFIED": READING | {State.UNREADABLE},
    "OPEN": READING | {State.UNREADABLE, State.UNVERIFIED},
}


def documented() -> dict[State, set[State]]:
    """The second table of the docstring."""
    table: dict[State, set[State]] = {each: set() for each in State}
    rows = [line.split("|")[1:-1] for line in (state.__doc__ or "").splitlines() if line.startswith("|")]
    name = ""
    for first, *rest in rows:
        if len(rest) == 2 and rest[0].strip() in State.__members__:
            name = first.strip() or name
            for each in GROUPS.get(name) or {State[name]}:
                table[each].add(State[rest[0].strip()])
    return table


def test_the_table_of_the_docstring_is_the_one_in_force() -> None:
    assert documented() == {each: set(following) for each, following in NEXT.items()}


def _nothing(*_: object) -> None:
    pass


class Story:
    """A follower of a file, and the states that it goes through."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = RecordedLog()
        self.reactor = Reactor()
        self.seen: list[tuple[State, State]] = []
        options = Options(file=str(path), index=f"{path}.index", max_message_bytes=200)
        seen = self.seen

        class Recorded(Follower):
            def _become(self, state: State) -> None:
                before = self._state
                super()._become(state)
                if before is not self._state:
                    seen.append((before, self._state))

        self.follower = Recorded(
            self.reactor,
            options,
            make_framing("newline", 200),
            self.log,
            on_stale=_nothing,
            on_progress=_nothing,
        )
        self.fd = os.open(path, os.O_RDWR)

    def write(self, content: bytes) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, content, 0)

    def attach(self) -> None:
        self.follower.attach(self.fd, os.fstat(self.fd).st_size)

    def advance(self) -> None:
        self.follower.advance(os.fstat(self.fd).st_size)

    def turn_until(self, state: State) -> None:
        turn_until(self.reactor, lambda: self.follower._state is state, lambda: self.follower._state)

    def advance_unreadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let FILE grow while the disk cannot be read."""
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", _refuse)
            self.advance()


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "FAR_BYTES", 2 << 20)
    path = tmp_path / "stream"
    path.touch()
    story = Story(path)
    yield story
    story.follower.close()
    story.reactor.close()
    os.close(story.fd)


def in_state(story: Story, wanted: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring the follower into this state, as FILE would."""
    if wanted is State.WAITING:
        return
    if wanted is State.UNVERIFIED:
        story.write(SMALL)
        with monkeypatch.context() as patch:
            patch.setattr(StreamIndex, "verify", _refuse)
            story.follower.attach(story.fd, len(SMALL))
    elif wanted is State.BUILDING:
        story.write(LARGE)
        story.attach()
    elif wanted is State.CATCHING_UP:
        monkeypatch.setattr(module, "ATTACH_SECONDS", -1.0)
        story.write(SMALL)
        story.attach()
    elif wanted is State.CORRUPT:
        story.write(SMALL + b"x" * 300)
        story.attach()
    else:
        story.write(SMALL)
        story.attach()
        if wanted is State.UNREADABLE:
            story.write(SMALL + LINE)
            story.advance_unreadable(monkeypatch)
    assert story.follower._state is wanted


def _refuse(*_: object) -> None:
    raise OSError(5, "Input/output error")


def move(story: Story, begin: State, end: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leads from one state to the next one."""
    follower = story.follower
    if end is State.WAITING:
        follower.detach()
    elif end is State.UNREADABLE:
        # ENOTCONN, met by a look-up: FILE cannot be read any more, whatever the state.
        follower.on_read_error(OSError(107, "Transport endpoint is not connected"))
    elif end is State.UNVERIFIED and begin is State.WAITING:
        with monkeypatch.context() as patch:
            patch.setattr(StreamIndex, "verify", _refuse)
            follower.attach(story.fd, 0)
    elif end is State.UNVERIFIED:
        with monkeypatch.context() as patch:
            patch.setattr(StreamIndex, "verify", _refuse)
            follower.cut(CorruptIndexError("planted", 0))
    elif end is State.BUILDING:
        story.write(LARGE)
        story.advance()
    elif end is State.CORRUPT:
        story.write(SMALL + b"x" * 300)
        story.advance()
        story.turn_until(end)
    elif end is State.LIVE and begin is State.CORRUPT:
        story.write(SMALL)
        story.advance()
    elif end is State.CATCHING_UP and begin in {State.LIVE, State.CORRUPT}:
        with monkeypatch.context() as patch:
            patch.setattr(module, "TURN_SECONDS", -1.0)
            follower._start_over("planted")
    else:
        story.turn_until(State.LIVE)


@pytest.mark.parametrize(("begin", "end"), [(begin, end) for begin in State for end in State if begin is not end])
def test_every_transition_of_the_table_happens_and_no_other_one_can(
    story: Story, begin: State, end: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_state(story, begin, monkeypatch)
    story.seen.clear()
    if end in NEXT[begin]:
        move(story, begin, end, monkeypatch)
        assert story.seen[0] == (begin, end)
    else:
        with pytest.raises(RuntimeError, match="cannot become"):
            story.follower._become(end)
        assert story.follower._state is begin
    assert all(after in NEXT[before] for before, after in story.seen)


def test_a_follower_ends_from_every_state(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in State:
        in_state(story, each, monkeypatch)
        monkeypatch.setattr(module, "ATTACH_SECONDS", 0.05)
        story.follower.detach()
        assert story.follower._state is State.WAITING


def test_a_plain_number_from_the_end_is_refused_while_the_end_is_not_indexed(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain reply cannot say that it is partial, and an old offset would look like the end."""
    in_state(story, State.LIVE, monkeypatch)
    monkeypatch.setattr(module, "TURN_SECONDS", -1.0)
    story.write(SMALL + LINE * 15_000)
    story.advance()
    with pytest.raises(NotFoundError, match="not indexed yet"):
        story.follower.offset_of(Query("last", 0, is_json=False))
    assert story.follower.offset_of(Query("number", 1, is_json=False)) == len(LINE)
    story.turn_until(State.LIVE)
    turn_until(story.reactor, lambda: not story.follower._index.is_behind(story.follower._end))
    assert story.follower.offset_of(Query("last", 0, is_json=False)) == len(SMALL) + len(LINE) * 15_000


def test_a_detached_follower_reads_nothing(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor of FILE may be closed by then, and its number be another file's."""
    story.write(LINE * 3)  # too short for an entry
    story.attach()
    story.follower.detach()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", _refuse)
        assert story.follower.offset_of(Query("number", 0, is_json=False)) == 0
    story.follower.on_read_error(OSError(116, "Stale file handle"))
    assert story.follower._state is State.WAITING
