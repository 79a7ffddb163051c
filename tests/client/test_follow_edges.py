"""`tailsrv-put --follow` where lines are half, files are many, unreadable or back again, and names are shared."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from tailsrv_client import Producer
from tailsrv_client.put import rotated_files
from tailsrv_client.put.followed_file import identify
from tailsrv_client.put.resume_points import Names
from tests.client.test_follow import follow
from tests.support.processes import open_files
from tests.support.streams import (
    PUT,
    StreamUnderTest,
    append,
    assert_content_becomes,
    kill_process,
    lines,
    run,
    started,
)
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOK_SECONDS: Final = 1.0
"""Longer than a look at the files takes. If it is too short, a test passes that should fail, and never the reverse."""


@contextlib.contextmanager
def busy(path: Path) -> Iterator[threading.Event]:
    """Somebody appends to the file, whatever it is called meanwhile, more often than every 2 s; until the event."""
    done = threading.Event()

    def write(file: Any) -> None:
        number = 0
        while not done.wait(0.3):
            file.write(b"busy %d\n" % number)
            number += 1

    with path.open("ab", buffering=0) as file:
        writer = threading.Thread(target=write, args=(file,))
        writer.start()
        try:
            yield done
        finally:
            done.set()
            writer.join()


def test_a_file_that_is_truncated_while_it_waits_for_its_turn_loses_and_tears_nothing(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    with busy(log) as done, started(follow(stream, log)):
        wait_until(lambda: b"busy 0\n" in stream.content())
        log.rename(tmp_path / "app.log.1")
        append(log, b"the first line\nthe second line\n")
        time.sleep(LOOK_SECONDS)
        shutil.copy2(log, tmp_path / "app.log.2")
        os.truncate(log, 0)
        append(log, b"a line that is longer than both of them together, to be sure\nand another one\n")
        done.set()
        wait_until(lambda: stream.content().endswith(b"and another one\n"), "all is sent")
    sent = [line for line in stream.content().splitlines() if not line.startswith(b"busy")]
    assert sent == [
        b"the first line",
        b"the second line",
        b"a line that is longer than both of them together, to be sure",
        b"and another one",
    ]


@pytest.mark.parametrize("heading", [b"one\n", b""])
def test_a_line_without_its_end_is_not_waited_for_by_once(
    stream: StreamUnderTest, tmp_path: Path, heading: bytes
) -> None:
    log = tmp_path / "app.log"
    append(log, heading + b"half a line")
    for _ in range(2):
        ended = run(follow(stream, log, "--once"))
        assert (ended.returncode, ended.stderr, stream.content()) == (0, b"", heading)
    append(log, b" and its end\n")
    assert run(follow(stream, log, "--once")).returncode == 0
    assert stream.content() == heading + b"half a line and its end\n"


def test_a_line_without_its_end_has_no_time_limit(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, b"one\nhalf a line")
    with started(follow(stream, log, "--timeout", "3s")):
        assert_content_becomes(stream, b"one\n")
        time.sleep(3.0 + LOOK_SECONDS)
        append(log, b" and its end\n")
        assert_content_becomes(stream, b"one\nhalf a line and its end\n")


def test_an_old_file_that_ends_with_half_a_line_does_not_hold_up_the_new_one(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)), log.open("ab", buffering=0) as old:
        old.write(b"one\nhalf a line")
        assert_content_becomes(stream, b"one\n")
        log.rename(tmp_path / "app.log.1")
        append(log, b"two\n")
        assert_content_becomes(stream, b"one\ntwo\n")
        old.write(b" and its end\n")
        assert_content_becomes(stream, b"one\ntwo\nhalf a line and its end\n")


@pytest.mark.parametrize("limit", ["-S -n 64", "-n 64"], ids=["soft", "hard"])
def test_a_backlog_of_more_files_than_descriptors_is_sent_in_its_order(
    stream: StreamUnderTest, tmp_path: Path, limit: str
) -> None:
    log = tmp_path / "app.log"
    for number in range(90):
        path = tmp_path / f"app.log.{90 - number}"
        append(path, lines(number, number + 1))
        os.utime(path, (number, number))
    append(log, lines(90, 91))
    ended = run(["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *follow(stream, log, "--once")])
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert stream.content() == lines(0, 91)


def test_a_truncation_within_a_long_backlog_opens_no_more_files_than_there_may_be(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    oldest = tmp_path / "app.log.90"
    append(oldest, b"busy\n")
    os.utime(oldest, (0, 0))
    for number in range(1, 91):
        path = tmp_path / f"app.log.{90 - number}"
        append(path, lines(number, number + 1))
        os.utime(path, (number, number))
    append(log, lines(91, 92))
    with oldest.open("ab"), started(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *follow(stream, log)]):
        wait_until(lambda: b"busy\n" in stream.content())
        with busy(oldest):  # the others wait for their turn
            (tmp_path / "app.log.89").write_bytes(b"a line that is longer than the one before\n")
        wait_until(lambda: stream.content().endswith(lines(91, 92)), "all is sent")
    sent = [line for line in stream.content().splitlines(keepends=True) if not line.startswith(b"busy")]
    assert sent == [
        b"line 1\n",
        b"a line that is longer than the one before\n",
        *(b"line %d\n" % number for number in range(2, 92)),
    ]


def test_many_empty_rotated_files_are_passed_over(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    for number in range(1, 91):
        append(tmp_path / f"app.log.{number}", b"")
    append(log, b"one\n")
    ended = run(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *follow(stream, log, "--once")])
    assert (ended.returncode, ended.stderr, stream.content()) == (0, b"", b"one\n")


def test_what_is_to_be_ignored_stays_so_when_it_grows_and_is_renamed(stream: StreamUnderTest, tmp_path: Path) -> None:
    log, old = tmp_path / "app.log", tmp_path / "app.log.1"
    append(old, b"of before\n")
    append(log, b"one\n")
    with started(follow(stream, log, "--ignore-rotated")):
        assert_content_becomes(stream, b"one\n")
        append(old, b"late\n")
        old.rename(tmp_path / "app.log.2")
        log.rename(old)
        append(log, b"two\n")
        assert_content_becomes(stream, b"one\ntwo\n")


def test_a_file_that_comes_back_with_a_last_line_that_was_completed_is_not_repeated(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log, old = tmp_path / "app.log", tmp_path / "app.log.1"
    with dealt_with(stream, log, old, b"one\nhalf a line"):
        before = stream.content()
        log.rename(tmp_path / "away")
        old.rename(log)
        append(log, b"and what was thought of later\n")
        assert_content_becomes(stream, before + b"and what was thought of later\n")


def test_after_a_restart_a_completed_last_line_is_not_repeated(stream: StreamUnderTest, tmp_path: Path) -> None:
    log, old = tmp_path / "app.log", tmp_path / "app.log.1"
    append(old, b"one\nhalf a line")
    append(log, b"two\n")
    assert run(follow(stream, log, "--once")).returncode == 0
    assert stream.content() == b"one\nhalf a line\ntwo\n"
    old.rename(log)
    ended = run(follow(stream, log, "--once"))
    assert (ended.returncode, ended.stderr, stream.content()) == (0, b"", b"one\nhalf a line\ntwo\n")


def test_a_name_that_goes_while_the_directory_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "app.log"
    for suffix in ("", ".1", ".2", ".3.gz"):
        append(tmp_path / f"app.log{suffix}", b"x\n")
    scandir = os.scandir

    def slow(path: str) -> Any:
        with scandir(path) as found:
            entries = list(found)
        for suffix in (".2", ".3.gz"):
            (tmp_path / f"app.log{suffix}").unlink(missing_ok=True)
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", slow)
    assert rotated_files.rotated_names(str(log)) == [f"{log}.1"]
    assert rotated_files.compressed_names(str(log)) == []


PRIVATE: Final = (
    "import os\n"
    "opened = os.open\n"
    "def refuse(path, *arguments, **named):\n"
    "    if isinstance(path, str) and 'app.log' in path and not os.stat(path).st_mode & 0o004:\n"
    "        raise PermissionError(13, 'Permission denied', path)\n"
    "    return opened(path, *arguments, **named)\n"
    "os.open = refuse\n"
    "from tailsrv_client.put.cli import main\n"
    "main()\n"
)
"""The command as a user who may read only what everybody may read, also where the tests run as root."""


def test_a_file_that_may_not_be_read_yet_is_told_once_and_sent_when_it_may(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, b"one\n")
    log.chmod(0o644)
    command = [sys.executable, "-c", PRIVATE, *follow(stream, log)[len(PUT) :]]
    with started(command) as put:
        assert_content_becomes(stream, b"one\n")
        log.rename(tmp_path / "app.log.1")
        with open(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(b"two\n")
        time.sleep(LOOK_SECONDS)
        log.chmod(0o644)
        assert_content_becomes(stream, b"one\ntwo\n")
        kill_process(put)
        assert put.stderr is not None
        told = put.stderr.read().decode()
    assert told.count("app.log: cannot be read (Permission denied)") == 1, told


@pytest.mark.parametrize("name", ["app.log", "app.log.1"])
def test_once_is_no_success_while_a_file_may_not_be_read(stream: StreamUnderTest, tmp_path: Path, name: str) -> None:
    for each in ("app.log", "app.log.1"):
        append(tmp_path / each, each.encode() + b"\n")
        (tmp_path / each).chmod(0o600 if each == name else 0o644)
    ended = run([sys.executable, "-c", PRIVATE, *follow(stream, tmp_path / "app.log", "--once")[len(PUT) :]])
    assert ended.returncode == 1
    assert f"not sent, because they cannot be read: {tmp_path / name}".encode() in ended.stderr
    assert stream.content() == (b"app.log.1\n" if name == "app.log" else b"app.log\n")


UNSURE: Final = (
    "import fcntl\n"
    "control = fcntl.fcntl\n"
    "def refuse(fd, command, *rest):\n"
    "    if command == fcntl.F_SETLEASE:\n"
    "        raise PermissionError(13, 'Permission denied')\n"
    "    return control(fd, command, *rest)\n"
    "fcntl.fcntl = refuse\n"
    "from tailsrv_client.put import backlog, follower\n"
    "follower.UNSURE_SECONDS = backlog.UNSURE_SECONDS = 4.0\n"
    "from tailsrv_client.put.cli import main\n"
    "main()\n"
)
"""The command beside files of somebody else: the kernel does not say who writes, and quiet has to do."""


def test_once_waits_until_the_end_of_a_rotated_file_is_believed(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(tmp_path / "app.log.1", b"one\nhalf a line")
    append(log, b"two\nand half")
    for _ in range(2):
        ended = run([sys.executable, "-c", UNSURE, *follow(stream, log, "--once")[len(PUT) :]])
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert stream.content() == b"one\nhalf a line\ntwo\n"


def test_another_producer_of_a_files_name_is_told_and_nothing_is_sent_twice(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    """As a copied machine has them: host, path and inode are the same."""
    log = tmp_path / "app.log"
    append(log, b"one\ntwo\n")
    fd = os.open(log, os.O_RDONLY)
    name = Names("shared", identify(fd)).rest
    os.close(fd)
    with started(follow(stream, log, "--name", "shared")) as put:
        assert_content_becomes(stream, b"one\ntwo\n")
        with Producer(stream.acks, name) as other:
            other.send(b"of the other one")
            other.flush(PATIENCE)
        assert put.wait(PATIENCE) == 1
        assert put.stderr is not None
        assert b"another producer uses this name" in put.stderr.read()
    assert stream.content() == b"one\ntwo\nof the other one\n"


def test_a_file_that_was_dealt_with_and_comes_back_is_followed_again(stream: StreamUnderTest, tmp_path: Path) -> None:
    log, old = tmp_path / "app.log", tmp_path / "app.log.1"
    with dealt_with(stream, log, old, b"one\n"):
        log.rename(tmp_path / "away")
        old.rename(log)
        append(log, b"three\n")
        assert_content_becomes(stream, b"one\ntwo\nthree\n")


def test_a_rotated_file_that_grows_again_is_sent_on(stream: StreamUnderTest, tmp_path: Path) -> None:
    """By a writer that opened it late; what it wrote is found when the file is renamed once more."""
    log, old = tmp_path / "app.log", tmp_path / "app.log.1"
    with dealt_with(stream, log, old, b"one\n"):
        append(old, b"three\n")
        old.rename(tmp_path / "app.log.2")
        assert_content_becomes(stream, b"one\ntwo\nthree\n")


@contextlib.contextmanager
def dealt_with(stream: StreamUnderTest, log: Path, old: Path, content: bytes) -> Iterator[None]:
    """A follower that has sent `content` from what is `old` now, and "two" from `log`, and has closed the old file."""
    append(log, content)
    with started(follow(stream, log)) as put:
        assert_content_becomes(stream, b"one\n")
        log.rename(old)
        append(log, b"two\n")
        wait_until(lambda: stream.content().endswith(b"two\n"))
        assert stream.content() == content.removesuffix(b"\n") + b"\ntwo\n"
        wait_until(lambda: str(old) not in open_files(put.pid), "the old file is dealt with")
        yield
