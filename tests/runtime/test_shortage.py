"""The policy for shortages: descriptors held back, activities that pause and resume."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime import shortage
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import RESERVED, Retried, hold_descriptors, is_shortage, spare_descriptors
from tests.support.logs import RecordedLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_runtime.reactor import Reactor


@pytest.fixture
def full_table() -> Iterator[list[int]]:
    """Descriptors are held back, and everything else is used up."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    hold_descriptors()
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    assert max(taken) == 127
    yield taken
    for fd in (*taken, *shortage._held):
        os.close(fd)
    shortage._held.clear()
    shortage._wanted = 0
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_held_back_can_be_opened_inside_the_with_statement_alone(full_table: list[int]) -> None:
    with spare_descriptors():
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVED)]
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
    full_table += opened
    with pytest.raises(OSError, match="Too many open files"):
        os.open(os.devnull, os.O_RDONLY)


def test_what_was_lent_and_given_back_is_held_back_again(full_table: list[int]) -> None:
    assert full_table
    for _ in range(3):
        with spare_descriptors():
            os.close(os.open(os.devnull, os.O_RDONLY))
        assert len(shortage._held) == RESERVED


def test_a_process_that_holds_nothing_back_is_left_alone() -> None:
    with spare_descriptors():
        pass
    assert not shortage._held


def raising(*errors: int) -> Callable[[], None]:
    """Fails with one error after the other, then succeeds."""
    left = list(errors)

    def attempt() -> None:
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))

    return attempt


def test_an_activity_that_meets_a_shortage_pauses_is_logged_once_and_resumes(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortage, "RETRY_SECONDS", 0.001)
    log = RecordedLog()
    attempt = raising(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
    activity = Retried(reactor, log, "opening the file", attempt, file="events.log")
    activity()
    assert activity.paused == "opening the file is paused: Too many open files"

    def look() -> None:
        if activity.paused is None:
            reactor.stop()
        else:
            reactor.call_later(0.001, look)

    look()
    reactor.run()
    assert log.events == [
        (
            "opening the file paused",
            {"error": "Too many open files", "advice": "raise LimitNOFILE= (ulimit -n)", "file": "events.log"},
        ),
        ("opening the file resumed", {"file": "events.log"}),
    ]


def test_an_error_that_is_no_shortage_is_the_callers(reactor: Reactor) -> None:
    activity = Retried(reactor, RecordedLog(), "opening the file", raising(errno.EACCES))
    with pytest.raises(PermissionError):
        activity()
    assert activity.paused is None


def test_a_failure_after_the_shortage_is_reported_to_the_callback(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then nobody is there to whom it could be raised: FILE became a directory meanwhile."""
    monkeypatch.setattr(shortage, "RETRY_SECONDS", 0.001)
    errors: list[BaseException] = [OSError(errno.EMFILE, "short"), FatalError("a directory")]

    def attempt() -> None:
        raise errors.pop(0)

    told: list[str] = []

    def failed(error: FatalError) -> None:
        told.append(str(error))
        reactor.stop()

    activity = Retried(reactor, RecordedLog(), "opening the file", attempt, failed=failed)
    activity()
    reactor.call_later(5.0, reactor.stop)
    reactor.run()
    assert (told, activity.paused) == (["a directory"], None)


def test_a_cancelled_activity_is_not_tried_again(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "RETRY_SECONDS", 0.001)
    log = RecordedLog()
    activity = Retried(reactor, log, "opening the file", raising(errno.EMFILE))
    activity()
    activity.cancel()
    reactor.call_later(0.02, reactor.stop)
    reactor.run()
    assert [event for event, _ in log.events] == ["opening the file paused"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN])
def test_a_shortage_passes(number: int) -> None:
    assert is_shortage(OSError(number, os.strerror(number)))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EBADF, errno.EPIPE])
def test_anything_else_does_not_pass_by_itself(number: int) -> None:
    assert not is_shortage(OSError(number, os.strerror(number)))
