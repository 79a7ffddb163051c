"""A growing file as its readers see it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv.kit import stream as stream_module
from tailsrv.kit.errors import FatalError
from tailsrv.kit.mark import MarkWriter
from tailsrv.kit.reactor import Reactor
from tailsrv.kit.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 10.0


class Story:
    """A stream in a loop of its own, and what it told. Also its log: what a daemon would have written."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.ends: list[int] = []
        self.gone = 0
        self.lines: list[str] = []
        self.reactor = Reactor()
        self.stream = Stream(
            self.reactor, str(path), self, changed=self._changed, gone=self._gone, failed=self._failed, **settings
        )

    def _changed(self) -> None:
        self.ends.append(self.stream.end)

    def _gone(self) -> None:
        self.gone += 1

    def _failed(self, error: FatalError) -> None:
        raise error

    def debug(self, event: str, **_: object) -> None:
        self.lines.append(event)

    info = warning = error = debug

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until the condition holds."""

        def too_late() -> None:
            raise TimeoutError(f"{self.ends} {self.lines}")

        def look() -> None:
            if condition():
                self.reactor.stop()

        limit = self.reactor.call_later(PATIENCE, too_late)
        self.reactor.after_round(look)
        self.reactor.post(lambda: None)
        self.reactor.run()
        self.reactor._after_round = ()
        limit.cancel()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def tell(log: Path) -> Iterator[Callable[..., Story]]:
    stories: list[Story] = []

    def begin(**settings: Any) -> Story:
        story = Story(log, **settings)
        stories.append(story)
        story.stream.open()
        return story

    yield begin
    for story in stories:
        story.stream.close()
        story.reactor.close()


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_without_a_mark_the_end_is_the_size_and_follows_it(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"one")
    story = tell()
    assert story.stream.end == 3
    _append(log, b"two")
    story.until(lambda: story.stream.end == 6)
    assert story.ends[-1] == 6


def test_a_missing_file_is_waited_for_also_when_it_is_moved_into_place(log: Path, tell: Callable[..., Story]) -> None:
    story = tell()
    assert (story.stream.fd, story.stream.end) == (-1, 0)
    other = log.with_name("other")
    other.write_bytes(b"hello")
    other.rename(log)
    story.until(lambda: story.stream.end == 5)
    assert os.pread(story.stream.fd, 10, 0) == b"hello"


def test_from_the_moment_that_the_mark_exists_it_bounds_the_end(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"0123456789")
    story = tell()
    assert story.stream.end == 10
    mark = MarkWriter(f"{log}.commit", 4)
    story.until(lambda: story.stream.end == 4)
    mark.move(7)
    story.until(lambda: story.stream.end == 7)
    mark.move(99)
    story.until(lambda: story.stream.committed == 99)
    assert story.stream.end == 10
    mark.close()


def test_a_mark_that_is_deleted_goes_on_to_hold_until_there_is_a_new_one(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"0123456789")
    mark = MarkWriter(f"{log}.commit", 4)
    story = tell()
    mark.close()
    os.unlink(f"{log}.commit")
    story.until(lambda: "commit mark gone" in story.lines)
    assert story.stream.end == 4
    MarkWriter(f"{log}.commit", 8).close()
    story.until(lambda: story.stream.end == 8)


def test_a_damaged_mark_shows_nothing_that_was_not_committed(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"0123456789")
    log.with_name("log.commit").write_bytes(b"garbage")
    assert tell().stream.end == 0


def test_the_mark_is_ignored_on_request(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 4).close()
    assert tell(use_mark=False).stream.end == 10


def test_bytes_that_stay_uncommitted_are_reported_once(
    log: Path, tell: Callable[..., Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "UNCOMMITTED_SECONDS", 0.02)
    log.write_bytes(b"0123456789")
    mark = MarkWriter(f"{log}.commit", 4)
    story = tell()
    story.until(lambda: "uncommitted bytes" in story.lines)
    _append(log, b"more")
    story.until(lambda: story.stream.size == 14)
    assert story.reactor._timeout() == -1
    mark.move(14)
    story.until(lambda: story.stream.end == 14)
    mark.close()
    assert story.lines.count("uncommitted bytes") == 1


def test_bytes_that_were_committed_in_time_leave_no_timer_behind(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"0123456789")
    mark = MarkWriter(f"{log}.commit", 4)
    story = tell()
    assert story.reactor._timeout() > 0
    mark.move(10)
    story.until(lambda: story.stream.end == 10)
    mark.close()
    assert story.reactor._timeout() == -1


def test_a_truncated_file_is_reported_and_its_end_goes_back(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"0123456789")
    story = tell()
    os.truncate(log, 3)
    story.until(lambda: story.stream.end == 3)
    assert "file truncated" in story.lines


@pytest.mark.parametrize("way", ["deleted", "moved", "replaced"])
def test_a_file_that_goes_is_noticed_once_and_stays_readable(log: Path, tell: Callable[..., Story], way: str) -> None:
    log.write_bytes(b"content")
    story = tell()
    if way == "deleted":
        log.unlink()
    elif way == "moved":
        log.rename(log.with_name("log.1"))
    else:
        log.with_name("new").write_bytes(b"something else")
        log.with_name("new").rename(log)
    story.until(lambda: story.gone > 0)
    assert story.gone == 1
    assert os.pread(story.stream.fd, 10, 0) == b"content"


def test_changed_permissions_are_not_a_file_that_goes(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"content")
    story = tell()
    log.chmod(0o600)
    _append(log, b"!")
    story.until(lambda: story.stream.end == 8)
    assert story.gone == 0


def test_many_events_and_the_longest_names_beside_the_file_are_taken_at_once(
    log: Path, tell: Callable[..., Story]
) -> None:
    log.write_bytes(b"")
    story = tell()
    for number in range(50):
        log.with_name(f"{number:0255}").touch()
        _append(log, b"!")
    story.until(lambda: story.stream.end == 50)
    assert len(story.ends) == 1


def test_polling_sees_what_no_event_tells(log: Path, tell: Callable[..., Story]) -> None:
    log.write_bytes(b"content")
    story = tell(poll_seconds=0.01)
    story.reactor.unregister(story.stream._inotify.fileno())
    _append(log, b"!")
    story.until(lambda: story.stream.end == 8)
    log.unlink()
    story.until(lambda: story.gone == 1)


@pytest.mark.parametrize(
    ("code", "sysctl"), [(errno.EMFILE, "fs.inotify.max_user_instances"), (errno.ENOSPC, "fs.inotify.max_user_watches")]
)
def test_a_limit_of_inotify_is_named(log: Path, monkeypatch: pytest.MonkeyPatch, code: int, sysctl: str) -> None:
    class Refusing:
        def __init__(self, **_: object) -> None:
            if code == errno.EMFILE:
                raise OSError(code, os.strerror(code))

        def fileno(self) -> int:
            return -1

        def add_watch(self, *_: object) -> int:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(stream_module, "INotify", Refusing)
    with pytest.raises(FatalError, match=sysctl):
        Story(log).stream.open()
