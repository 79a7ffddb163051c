"""A committer's states: the table of `collator.committer`, walked with real files and threads."""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest

from collator import committer, streamfile
from collator.batch_builder import BatchBuilder, Inbox
from collator.committer import (
    BLOCKED,
    COMPACTING,
    FAILED,
    IDLE,
    NEXT,
    PUBLISHING,
    REPLACING,
    RESCUING,
    WRITING,
    Committer,
    State,
)
from collator.journal import JournalFile
from collator.options import Sync
from collator.recovery import Tracker, recover
from collator.sidecars import Sidecars
from collator.streamfile import StreamFile
from collator.workers import Worker
from tailsrv_formats.framing import make_framing
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.watches import Watches
from tests.support.logs import RecordedLog
from tests.support.loops import turn_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from collator.batch_builder import Batch
    from tailsrv_runtime.reactor import Reactor

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")


class Bench:
    """A committer of a stream in a directory, and the states it has been in."""

    def __init__(self, reactor: Reactor, path: Path) -> None:
        self.reactor, self.path, self.log = reactor, path, RecordedLog()
        framing = make_framing("newline")
        self.file = StreamFile(str(path))
        recovered = recover(self.file, framing, "always", Tracker(), {}, adopt=False)
        self.watches = Watches()
        self.sidecars = Sidecars(reactor, self.file, recovered, self.watches, log=self.log, noticed=self._noticed)
        self.workers = Worker(reactor, "file"), Worker(reactor, "journal")
        self.builder = BatchBuilder(framing, 1 << 20)
        self.committed: list[Batch] = []
        self.committer = Committer(
            reactor,
            file=self.file,
            sidecars=self.sidecars,
            workers=self.workers,
            sync=Sync("always"),
            log=self.log,
            committed=self.committed.append,
            producers={},
        )
        self.states: list[State] = [IDLE]
        become = self.committer._become

        def note(state: State) -> None:
            become(state)
            self.states.append(state)

        self.committer._become = note  # type: ignore[method-assign]  # to look on

    def _noticed(self) -> None:
        self.committer.look()

    def commit(self, message: bytes = b"a message\n") -> None:
        """Begin to commit one message."""
        inbox = Inbox()
        space = self.builder.space(inbox)
        assert space is not None
        space[: len(message)] = message
        self.builder.received(inbox, len(message))
        self.committer.commit(self.builder.take(), [])

    def until_idle(self) -> list[State]:
        """Turn the loop until nothing is under way. Returns the states since the last call."""
        turn_until(self.reactor, lambda: self.committer.state is IDLE, lambda: self.log.events)
        states, self.states = self.states, [IDLE]
        return states

    def until_failed(self, message: str) -> list[State]:
        """Turn the loop until it ends with this error. Returns all states."""
        with pytest.raises(FatalError, match=message):
            turn_until(self.reactor, lambda: False)
        return self.states

    def close(self) -> None:
        self.committer.close()
        for worker in self.workers:
            worker.close()
        self.sidecars.close()
        self.watches.close()
        self.file.close()


@pytest.fixture
def bench(reactor: Reactor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(committer, "RETRY_SECONDS", 0.01)
    made = Bench(reactor, tmp_path / "stream")
    yield made
    made.close()


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, BaseException], None]:
    """Let the next call of a function raise, and later ones do what they did."""

    def patch(owner: object, name: str, error: BaseException) -> None:
        honest, left = getattr(owner, name), [error]

        def fail(*arguments: Any, **named: Any) -> Any:
            if left:
                raise left.pop()
            return honest(*arguments, **named)

        monkeypatch.setattr(owner, name, fail)

    return patch


def append_by_hand(bench: Bench) -> None:
    with bench.path.open("ab") as file:
        file.write(b"by hand\n")


def lose_the_journal(bench: Bench) -> None:
    os.unlink(bench.sidecars.journal.path)
    bench.sidecars.look()


COMMIT = [IDLE, WRITING, PUBLISHING, IDLE]
RESCUE = [IDLE, WRITING, RESCUING, WRITING, PUBLISHING, IDLE]
REPLACE = [IDLE, REPLACING, IDLE]
COMPACT = [*COMMIT, COMPACTING, IDLE]
RETRIES: list[tuple[object, str, list[State]]] = [
    (streamfile, "append", [IDLE, WRITING, BLOCKED, WRITING, PUBLISHING, IDLE]),
    (committer, "Rescue", [IDLE, WRITING, RESCUING, BLOCKED, WRITING, RESCUING, WRITING, PUBLISHING, IDLE]),
    (Sidecars, "move_mark", [IDLE, WRITING, PUBLISHING, BLOCKED, PUBLISHING, IDLE]),
    (JournalFile, "rewrite", [IDLE, WRITING, PUBLISHING, REPLACING, BLOCKED, REPLACING, PUBLISHING, IDLE]),
]
FAILURES: list[tuple[object, str, list[State], str]] = [
    (
        streamfile,
        "append",
        [IDLE, WRITING, FAILED],
        "commit failed: cannot write .*stream or .*producers: Input/output",
    ),
    (committer, "Rescue", [IDLE, WRITING, RESCUING, FAILED], "cannot rescue foreign bytes from .*stream: Input/output"),
    (Sidecars, "move_mark", [IDLE, WRITING, PUBLISHING, FAILED], "cannot write the commit mark of .*: Input/output"),
    (
        JournalFile,
        "rewrite",
        [IDLE, WRITING, PUBLISHING, REPLACING, FAILED],
        "cannot rewrite the missing .*: Input/output",
    ),
    (JournalFile, "rewrite", [*COMMIT, COMPACTING, FAILED], "cannot compact .*producers: Input/output error"),
    (Sidecars, "open", [*COMMIT, FAILED], "cannot compact .*producers: Input/output error"),
]
LATE_FAILURE = [IDLE, WRITING, BLOCKED, FAILED]


def test_the_routes_below_are_the_whole_table() -> None:
    routes = [COMMIT, RESCUE, REPLACE, COMPACT, LATE_FAILURE]
    routes += [case[2] for case in RETRIES] + [case[2] for case in FAILURES]
    taken = {change for route in routes for change in itertools.pairwise(route)}
    assert taken == {(old, new) for old in State for new in NEXT[old]}


# --- every change of state that the table allows


def test_a_batch_is_written_published_and_committed(bench: Bench) -> None:
    bench.commit()
    assert bench.until_idle() == COMMIT
    assert [batch.size for batch in bench.committed] == [10]
    assert bench.path.read_bytes() == b"a message\n"


def test_foreign_bytes_are_rescued_before_the_batch_is_published(bench: Bench) -> None:
    append_by_hand(bench)
    bench.commit()
    assert bench.until_idle() == RESCUE
    assert bench.path.read_bytes() == b"a message\n"


@pytest.mark.parametrize(("owner", "name", "states"), RETRIES)
def test_a_step_that_meets_a_full_disk_is_tried_again(
    bench: Bench, once: Any, owner: object, name: str, states: list[State]
) -> None:
    if RESCUING in states:
        append_by_hand(bench)
    if REPLACING in states:
        lose_the_journal(bench)
    once(owner, name, DISK_FULL)
    bench.commit()
    turn_until(bench.reactor, lambda: BLOCKED in bench.states)
    assert "disk full" in str(bench.committer.blocked)
    assert bench.committed == []
    assert bench.until_idle() == states
    assert bench.committer.blocked is None
    assert [len(bench.log.of(event)) for event in ("disk full", "disk space available")] == [1, 1]
    assert len(bench.committed) == 1


def test_a_journal_that_is_lost_between_two_commits_is_written_at_once(bench: Bench) -> None:
    os.unlink(bench.sidecars.journal.path)
    bench.committer.look()
    assert bench.until_idle() == REPLACE
    assert os.path.exists(bench.sidecars.journal.path)


def test_a_journal_that_has_grown_is_compacted_after_a_commit(bench: Bench) -> None:
    bench.sidecars.journal._compact_at = 0
    bench.commit()
    turn_until(bench.reactor, lambda: bench.states[-1] is IDLE and COMPACTING in bench.states)
    assert bench.until_idle() == COMPACT


def test_a_compaction_that_meets_a_full_disk_leaves_the_old_journal_in_use(bench: Bench, once: Any) -> None:
    bench.sidecars.journal._compact_at = 0
    once(JournalFile, "rewrite", DISK_FULL)
    bench.commit()
    turn_until(bench.reactor, lambda: bench.log.of("journal compaction failed") != [])
    assert bench.until_idle()[-2:] == [COMPACTING, IDLE]
    bench.commit()
    assert bench.until_idle() == COMMIT


# --- every state in which it can fail


@pytest.mark.parametrize(("owner", "name", "states", "message"), FAILURES)
def test_any_other_error_ends_the_daemon_and_nothing_more_is_committed(
    bench: Bench,
    once: Any,
    owner: object,
    name: str,
    *,
    states: list[State],
    message: str,
) -> None:
    committed = states.count(IDLE) - 1
    if RESCUING in states:
        append_by_hand(bench)
    if REPLACING in states:
        lose_the_journal(bench)
    if committed:
        bench.sidecars.journal._compact_at = 0
    once(owner, name, BROKEN)
    bench.reactor.post(bench.commit)
    assert bench.until_failed(message) == states
    assert len(bench.committed) == committed
    with pytest.raises(RuntimeError, match="failed cannot become writing"):
        bench.commit()


def test_a_compaction_that_fails_while_the_disk_is_full_ends_the_daemon(bench: Bench, once: Any) -> None:
    once(streamfile, "append", DISK_FULL)
    bench.commit()
    turn_until(bench.reactor, lambda: bench.committer.state is BLOCKED)
    once(Sidecars, "open", BROKEN)
    with pytest.raises(FatalError, match="cannot compact"):
        bench.committer._compaction()
    assert bench.states == LATE_FAILURE


# --- and every change that it does not allow


@pytest.mark.parametrize(
    ("old", "new"), [(old, new) for old, new in itertools.product(State, State) if new not in NEXT[old]]
)
def test_a_change_that_is_not_in_the_table_is_refused(bench: Bench, old: State, new: State) -> None:
    bench.committer.state = old
    with pytest.raises(RuntimeError, match=f"{old} cannot become {new}"):
        bench.committer._become(new)
    assert bench.committer.state is old
    bench.committer.state = IDLE
