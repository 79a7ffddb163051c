"""A growing file as its readers see it.

One suite for both ways of watching: a test that takes `watch` runs with inotify's events alone and with polling alone.
A test that takes `watch_events` is about the events themselves, or about polling beside them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_runtime import shortage, uncommitted, watches
from tailsrv_runtime.commit_mark import MarkWriter
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.files import open_regular
from tailsrv_runtime.reactor import Reactor
from tailsrv_runtime.shortage import ShortageError
from tailsrv_runtime.stream import Stream
from tests.support.loops import turn_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Story:
    """A stream in a loop of its own, with the changes that it reported. It is also the stream's log."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.ends: list[int] = []
        self.gone = 0
        self.on_gone: Callable[[], None] = lambda: None
        self.lines: list[str] = []
        self.reactor = Reactor()
        self.stream = Stream(
            self.reactor, str(path), self, changed=self._changed, gone=self._gone, failed=self._failed, **settings
        )

    def _changed(self) -> None:
        self.ends.append(self.stream.end)

    def _gone(self) -> None:
        self.gone += 1
        self.on_gone()

    def _failed(self, error: FatalError) -> None:
        raise error

    def debug(self, event: str, **_: object) -> None:
        self.lines.append(event)

    info = warning = error = debug

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until the condition holds."""
        turn_until(self.reactor, condition, lambda: f"{self.ends} {self.lines}")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    return tmp_path / "directory" / "log"


Watch = Callable[..., Story]


@pytest.fixture
def watch_events(log: Path) -> Iterator[Watch]:
    """Opens the stream; keywords are settings of `Stream`."""
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


@pytest.fixture(params=["inotify", "polling"])
def watch(request: pytest.FixtureRequest, watch_events: Watch) -> Watch:
    """Opens the stream, which learns of changes in one way alone."""
    if request.param == "inotify":
        return watch_events

    def begin(**settings: Any) -> Story:
        story = watch_events(poll_seconds=0.01, **settings)
        story.reactor.unregister(story.stream._inotify_fd)  # as on a network file system, which has no events
        return story

    return begin


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_without_a_mark_the_end_is_the_size_and_follows_it(log: Path, watch: Watch) -> None:
    log.write_bytes(b"one")
    story = watch()
    assert story.stream.end == 3
    _append(log, b"two")
    story.until(lambda: story.stream.end == 6)
    assert story.ends[-1] == 6


def test_a_missing_file_is_waited_for_also_when_it_is_moved_into_place(log: Path, watch: Watch) -> None:
    story = watch()
    assert (story.stream.fd, story.stream.end) == (-1, 0)
    other = log.with_name("other")
    other.write_bytes(b"hello")
    other.rename(log)
    story.until(lambda: story.stream.end == 5)
    assert os.pread(story.stream.fd, 10, 0) == b"hello"


def test_from_the_moment_that_the_mark_exists_it_bounds_the_end(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    story = watch()
    assert story.stream.end == 10
    mark = MarkWriter(f"{log}.commit", 4)
    story.until(lambda: story.stream.end == 4)
    mark.move(7)
    story.until(lambda: story.stream.end == 7)
    mark.move(99)
    story.until(lambda: story.stream.committed == 99)
    assert story.stream.end == 10
    mark.close()


def test_a_deleted_mark_bounds_the_end_until_there_is_a_new_one(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    mark = MarkWriter(f"{log}.commit", 4)
    story = watch()
    mark.close()
    os.unlink(f"{log}.commit")
    story.until(lambda: "commit mark gone" in story.lines)
    assert story.stream.end == 4
    MarkWriter(f"{log}.commit", 8).close()
    story.until(lambda: story.stream.end == 8)


def test_a_damaged_mark_shows_nothing_that_was_not_committed(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    log.with_name("log.commit").write_bytes(b"garbage")
    assert watch().stream.end == 0


def test_the_mark_is_ignored_on_request(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 4).close()
    assert watch(use_mark=False).stream.end == 10


def test_bytes_that_stay_uncommitted_are_reported_once(
    log: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncommitted, "UNCOMMITTED_SECONDS", 0.02)
    log.write_bytes(b"0123456789")
    mark = MarkWriter(f"{log}.commit", 4)
    story = watch()
    story.until(lambda: "uncommitted bytes" in story.lines)
    _append(log, b"more")
    story.until(lambda: story.stream.size == 14)
    mark.move(14)
    story.until(lambda: story.stream.end == 14)
    mark.close()
    assert story.lines.count("uncommitted bytes") == 1


def test_bytes_that_were_reported_leave_no_timer_behind(
    log: Path, watch_events: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncommitted, "UNCOMMITTED_SECONDS", 0.02)
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 4).close()
    story = watch_events()
    story.until(lambda: "uncommitted bytes" in story.lines)
    _append(log, b"more")
    story.until(lambda: story.stream.size == 14)
    assert story.reactor._timeout() == -1


def test_bytes_that_were_committed_in_time_leave_no_timer_behind(log: Path, watch_events: Watch) -> None:
    log.write_bytes(b"0123456789")
    mark = MarkWriter(f"{log}.commit", 4)
    story = watch_events()
    assert story.reactor._timeout() > 0
    mark.move(10)
    story.until(lambda: story.stream.end == 10)
    mark.close()
    assert story.reactor._timeout() == -1


def test_a_truncated_file_is_reported_and_its_end_goes_back(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    story = watch()
    os.truncate(log, 3)
    story.until(lambda: story.stream.end == 3)
    assert "file truncated" in story.lines


@pytest.mark.parametrize("way", ["deleted", "moved", "replaced"])
def test_a_file_that_goes_is_noticed_once_and_stays_readable(log: Path, watch: Watch, way: str) -> None:
    log.write_bytes(b"content")
    story = watch()
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


def test_changed_permissions_are_not_a_file_that_goes(log: Path, watch: Watch) -> None:
    log.write_bytes(b"content")
    story = watch()
    log.chmod(0o600)
    _append(log, b"!")
    story.until(lambda: story.stream.end == 8)
    assert story.gone == 0


def test_many_events_and_the_longest_names_are_handled_in_one_round(log: Path, watch_events: Watch) -> None:
    log.write_bytes(b"")
    story = watch_events()
    for number in range(50):
        log.with_name(f"{number:0255}").touch()
        _append(log, b"!")
    story.until(lambda: story.stream.end == 50)
    assert len(story.ends) == 1


@pytest.mark.parametrize(
    ("code", "sysctl"), [(errno.EMFILE, "fs.inotify.max_user_instances"), (errno.ENOSPC, "fs.inotify.max_user_watches")]
)
def test_a_limit_of_inotify_is_a_shortage_that_names_it(
    log: Path, monkeypatch: pytest.MonkeyPatch, code: int, sysctl: str
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    fd = os.open(os.devnull, os.O_RDONLY)
    libc = SimpleNamespace(inotify_init1=refuse if code == errno.EMFILE else lambda _: fd, inotify_add_watch=refuse)
    monkeypatch.setattr(watches, "_LIBC", libc)
    with pytest.raises(ShortageError) as raised:
        Story(log).stream.open()
    assert sysctl in raised.value.advice
    os.close(fd)


# --- marks that say 0, come late, or can't be used


def test_a_mark_of_0_is_a_mark(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 10).close()
    story = watch()
    os.unlink(f"{log}.commit")
    story.until(lambda: "commit mark gone" in story.lines)
    os.truncate(log, 0)
    story.until(lambda: story.stream.end == 0)
    MarkWriter(f"{log}.commit", 0).close()
    _append(log, b"nobody has committed this")
    story.until(lambda: story.stream.size == 25)
    assert (story.stream.committed, story.stream.end) == (0, 0)


def test_a_look_finds_a_mark_whose_event_has_not_arrived(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    story = watch()
    MarkWriter(f"{log}.commit", 10).close()
    _append(log, b"uncommitted")
    story.stream.look()
    assert story.stream.end == 10


def test_a_look_finds_a_file_whose_event_has_not_arrived(log: Path, watch: Watch) -> None:
    story = watch()
    log.write_bytes(b"0123456789")
    story.stream.look()
    assert story.stream.end == 10


def _no_mark(kind: str, path: str) -> None:
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    else:
        os.symlink("nothing", path)


def _remove(path: str) -> None:
    os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


KINDS = ["directory", "fifo", "socket", "link"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_that_is_no_file_is_refused_at_start_with_its_path(log: Path, watch: Watch, kind: str) -> None:
    log.write_bytes(b"0123456789")
    _no_mark(kind, f"{log}.commit")
    with pytest.raises(FatalError, match=rf"cannot use {log}\.commit: .*--no-commit-mark"):
        watch()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("then", ["a mark", "nothing"])
def test_a_mark_that_is_no_file_holds_the_end_where_it_was_until_it_is_replaced_or_removed(
    log: Path, watch: Watch, kind: str, then: str
) -> None:
    log.write_bytes(b"0123456789")
    story = watch()
    _no_mark(kind, f"{log}.commit")
    story.until(lambda: "commit mark unusable" in story.lines)
    _append(log, b"nobody can tell whether this is committed")
    story.until(lambda: story.stream.size > 10)
    assert story.stream.end == 10
    assert f"{log}.commit cannot be used" in str(story.stream.unhealthy())
    _append(log, b"!")
    story.until(lambda: story.stream.size > 51)
    _remove(f"{log}.commit")
    if then == "a mark":
        MarkWriter(f"{log}.commit", 20).close()
    story.until(lambda: story.stream.end == (20 if then == "a mark" else 52))
    assert story.lines.count("commit mark unusable") == 1
    assert story.stream.unhealthy() is None


def test_a_mark_that_is_replaced_by_a_directory_still_bounds_the_end(log: Path, watch: Watch) -> None:
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 4).close()
    story = watch()
    os.unlink(f"{log}.commit")
    os.mkdir(f"{log}.commit")
    story.until(lambda: "commit mark unusable" in story.lines)
    assert story.stream.end == 4
    os.rmdir(f"{log}.commit")
    story.until(lambda: story.stream.unhealthy() is None)
    assert story.stream.end == 4
    MarkWriter(f"{log}.commit", 9).close()
    story.until(lambda: story.stream.end == 9)


def test_a_mark_that_began_as_a_dangling_link_bounds_the_end_when_it_is_gone(log: Path, watch: Watch) -> None:
    """It was a mark in between, so consumers must not see what is beyond it."""
    log.write_bytes(b"0123456789")
    story = watch()
    os.symlink("target", f"{log}.commit")
    story.until(lambda: "commit mark unusable" in story.lines)
    MarkWriter(f"{log.parent}/target", 14).close()
    os.symlink("target", f"{log}.new")
    os.replace(f"{log}.new", f"{log}.commit")  # an event of its name: the target's appearance has none
    _append(log, b"abcdefgh")
    story.until(lambda: story.stream.end == 14)
    os.unlink(f"{log.parent}/target")
    story.until(lambda: "commit mark gone" in story.lines)
    os.unlink(f"{log}.commit")
    _append(log, b"uncommitted")
    story.until(lambda: story.stream.size == 29)
    assert story.stream.end == 14


@pytest.mark.parametrize("way", ["renamed over", "moved aside"])
def test_a_mark_that_is_replaced_is_followed(log: Path, watch: Watch, way: str) -> None:
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 4).close()
    story = watch()
    MarkWriter(f"{log}.new", 5).close()
    if way == "moved aside":
        os.rename(f"{log}.commit", f"{log}.old")
    os.rename(f"{log}.new", f"{log}.commit")
    story.until(lambda: story.stream.end == 5)
    MarkWriter(f"{log}.commit", 6).close()
    story.until(lambda: story.stream.end == 6)
    assert story.ends[-1] == 6


# --- wake-ups, polling, closing


def test_other_names_in_the_directory_do_not_wake_a_stream_with_file_and_mark(log: Path, watch_events: Watch) -> None:
    log.write_bytes(b"0123456789")
    MarkWriter(f"{log}.commit", 4).close()
    story = watch_events()
    for number in range(10):
        log.with_name(f"other{number}").touch()
    with pytest.raises(BlockingIOError):
        os.read(story.stream._inotify_fd, 4096)


@pytest.mark.parametrize("poll_seconds", [None, 0.01])
def test_a_stream_that_is_closed_when_its_file_is_gone_reports_nothing_more(
    log: Path, poll_seconds: float | None
) -> None:
    log.write_bytes(b"0123456789")
    story = Story(log, poll_seconds=poll_seconds)
    story.stream.open()
    if poll_seconds is not None:
        story.reactor.unregister(story.stream._inotify_fd)  # the poll alone is to find it
    story.on_gone = story.stream.close
    log.unlink()
    story.until(lambda: story.gone == 1)
    log.write_bytes(b"its successor")
    told = len(story.ends)
    assert story.reactor._timeout() == -1
    story.until(lambda: True)
    assert (story.gone, len(story.ends)) == (1, told)
    story.reactor.close()


def test_a_directory_that_is_made_again_is_watched_again(log: Path, watch_events: Watch) -> None:
    log.parent.rmdir()
    log.parent.mkdir()
    story = watch_events()
    log.parent.rmdir()
    story.until(lambda: "watching the directory paused" in story.lines)
    log.parent.mkdir()
    log.write_bytes(b"hello")
    story.until(lambda: story.stream.end == 5)
    assert story.stream.unhealthy() is None


def test_a_directory_that_is_moved_away_takes_the_file_with_it(log: Path, watch: Watch) -> None:
    log.write_bytes(b"hello")
    story = watch(use_mark=False)
    log.parent.rename(log.parent.with_name("elsewhere"))
    story.until(lambda: story.gone > 0)
    assert story.gone == 1


def test_a_file_in_a_directory_that_was_made_again_is_opened(log: Path, watch: Watch) -> None:
    story = watch()
    log.parent.rmdir()
    log.parent.mkdir()
    log.write_bytes(b"hello")
    story.until(lambda: story.stream.end == 5)
    assert story.stream.unhealthy() is None


def test_bytes_that_were_appended_right_before_the_file_was_moved_are_reported(log: Path, watch: Watch) -> None:
    log.write_bytes(b"hello")
    story = watch()
    _append(log, b" world")
    log.rename(log.with_name("moved"))
    story.until(lambda: story.gone > 0)
    assert (story.gone, story.ends[-1]) == (1, 11)


def test_a_poll_reports_bytes_that_were_appended_before_the_file_was_moved(log: Path, watch_events: Watch) -> None:
    """Where the kernel tells nothing, as on a network file system."""
    log.write_bytes(b"hello")
    story = watch_events(poll_seconds=60)
    _append(log, b" world")
    log.rename(log.with_name("moved"))
    story.stream._on_poll()
    assert (story.gone, story.ends) == (1, [11])


# --- shortages


class Short:
    """Stands in for `open_regular` as long as there are no descriptors for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lasts = True
        self._open = open_regular
        monkeypatch.setattr(watches, "open_regular", self)
        monkeypatch.setattr(shortage, "RETRY_SECONDS", 0.01)

    def __call__(self, path: str) -> int:
        if self.lasts:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return self._open(path)


def test_a_file_that_appears_in_a_shortage_is_opened_when_it_is_over(
    log: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = watch()
    short = Short(monkeypatch)
    log.write_bytes(b"hello")
    story.until(lambda: "opening the file paused" in story.lines)
    assert "Too many open files" in str(story.stream.unhealthy())
    story.reactor.call_later(0.1, lambda: setattr(short, "lasts", False))
    story.until(lambda: story.ends[-1:] == [5])
    assert story.lines.count("opening the file paused") == story.lines.count("opening the file resumed") == 1
    assert story.stream.unhealthy() is None


def test_a_directory_in_the_place_of_the_file_after_a_shortage_is_reported_as_failed(
    log: Path, watch_events: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = watch_events()
    failures: list[str] = []
    monkeypatch.setattr(story.stream, "_failed", lambda error: failures.append(str(error)))
    log.mkdir()
    story.stream._look_again()  # what a paused watch does when it is back
    assert ["not a regular file" in failure for failure in failures] == [True]


def test_a_mark_that_appears_in_a_shortage_holds_the_end_where_it_was(
    log: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_bytes(b"0123456789")
    story = watch()
    short = Short(monkeypatch)
    mark = MarkWriter(f"{log}.commit", 10)
    _append(log, b"uncommitted")
    story.until(lambda: story.stream.size == 21)
    assert story.stream.end == 10
    mark.move(15)
    short.lasts = False
    story.until(lambda: story.stream.end == 15)
    mark.close()
    assert story.lines.count("opening the commit mark paused") == 1


def test_a_watch_that_the_kernel_refuses_is_requested_again(
    log: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = watch()
    monkeypatch.setattr(shortage, "RETRY_SECONDS", 0.01)
    add = story.stream._watches.add
    refused: list[str] = []

    def refuse(path: str, events: int) -> int:
        if len(refused) < 3:
            refused.append(path)
            raise ShortageError(OSError(errno.ENOSPC, ""), "out of inotify watches", "raise the limit")
        return add(path, events)

    monkeypatch.setattr(story.stream._watches, "add", refuse)
    held = len(os.listdir("/proc/self/fd"))
    log.write_bytes(b"hello")
    story.until(lambda: story.stream.end == 5)
    assert len(refused) == 3
    assert story.lines.count("opening the file paused") == 1
    assert len(os.listdir("/proc/self/fd")) == held + 1
