"""Promises of `tailsrv-put --follow`: a file that grows, is rotated, truncated, copied; watched or not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

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
from tests.support.waits import wait_size, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT_GENERATIONS: Final = (
    "import errno, fcntl\n"
    "ioctl = fcntl.ioctl\n"
    "def refuse(fd, request, *rest):\n"
    "    if request == 0x80087601:\n"
    "        raise OSError(errno.ENOTTY, 'not here')\n"
    "    return ioctl(fd, request, *rest)\n"
    "fcntl.ioctl = refuse\n"
    "from tailsrv_client.put.cli import main\n"
    "main()\n"
)
"""The command on a file system as overlayfs and NFS are: an inode's number is all that there is."""

TRUNCATED: Final = re.compile(
    r"app\.log was truncated in place( or replaced by another file)? while tailsrv-put did not run"
)
"""What is told depends on whether the file system has generations: tmpfs has none."""


def follow(stream: StreamUnderTest, log: Path, *options: str) -> list[str]:
    return [*PUT, stream.acks, "--follow", str(log), *options]


def test_it_sends_what_is_appended_line_by_line(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)) as put:
        append(log, b"one\ntw")
        assert_content_becomes(stream, b"one\n")
        append(log, b"o\n")
        assert_content_becomes(stream, b"one\ntwo\n")
        assert put.poll() is None


def test_rotation_ends_the_old_file_before_the_new_one_begins(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)), log.open("ab") as old:
        old.write(b"one\n")
        old.flush()
        assert_content_becomes(stream, b"one\n")
        log.rename(tmp_path / "app.log.1")
        append(log, b"three\n")
        old.write(b"two\nunfinished")
        old.close()
        assert_content_becomes(stream, b"one\ntwo\nunfinished\nthree\n")


def test_an_old_file_that_a_writer_keeps_open_does_not_hold_up_the_new_one(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)), log.open("ab") as old:
        old.write(b"one\n")
        old.flush()
        assert_content_becomes(stream, b"one\n")
        log.rename(tmp_path / "app.log.1")
        append(log, b"two\n")
        assert_content_becomes(stream, b"one\ntwo\n")
        old.write(b"late\n")
        old.flush()
        assert_content_becomes(stream, b"one\ntwo\nlate\n")


def test_a_file_that_is_moved_away_and_back_is_followed_on(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, b"one\n")
    with started(follow(stream, log)):
        assert_content_becomes(stream, b"one\n")
        log.rename(tmp_path / "away")
        (tmp_path / "away").rename(log)
        append(log, b"two\n")
        assert_content_becomes(stream, b"one\ntwo\n")


def test_rotations_that_nobody_watched_are_made_up_for(stream: StreamUnderTest, tmp_path: Path) -> None:
    """Killed, three rotations meanwhile, started again: nothing is missing and nothing comes twice."""
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    with started(follow(stream, log)) as put:
        assert_content_becomes(stream, lines(0, 10))
        kill_process(put)
    for turn in range(1, 4):
        append(log, lines(turn * 10, turn * 10 + 10))
        log.rename(tmp_path / f"app.log.2026112{turn}")
    append(log, lines(40, 50))
    for _ in range(2):
        ended = run(follow(stream, log, "--once"))
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert stream.content() == lines(0, 50)


def test_rotated_files_are_sent_in_turn_though_there_is_no_new_file_yet(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    for turn in range(3):
        append(tmp_path / f"app.log.2026112{turn}", lines(turn * 10, turn * 10 + 10))
    ended = run(follow(stream, log, "--once"))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert stream.content() == lines(0, 30)


def test_a_rotated_file_that_is_still_open_somewhere_has_no_end_yet(stream: StreamUnderTest, tmp_path: Path) -> None:
    """Acknowledged as far as it goes when the shipper starts, and then one more line comes."""
    log = tmp_path / "app.log"
    with log.open("ab") as old:
        old.write(b"one\n")
        old.flush()
        assert run(follow(stream, log, "--once")).returncode == 0
        log.rename(tmp_path / "app.log.1")
        with started(follow(stream, log)):
            append(log, b"three\n")
            assert_content_becomes(stream, b"one\nthree\n")  # it was quiet for long enough
            old.write(b"late\n")
            old.flush()
            assert_content_becomes(stream, b"one\nthree\nlate\n")


def test_what_was_rotated_before_it_ever_ran_can_be_left_alone(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(tmp_path / "app.log.1", b"old\n")
    append(log, b"new\n")
    assert run(follow(stream, log, "--once", "--ignore-rotated")).returncode == 0
    assert stream.content() == b"new\n"


def test_truncation_in_place_is_told_and_what_comes_after_it_is_sent(stream: StreamUnderTest, tmp_path: Path) -> None:
    """As logrotate's copytruncate does it: the copy is not sent again."""
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    with started(follow(stream, log)) as put:
        assert_content_becomes(stream, lines(0, 10))
        (tmp_path / "app.log.1").write_bytes(log.read_bytes())
        os.truncate(log, 0)
        append(log, b"new\n")
        assert_content_becomes(stream, lines(0, 10) + b"new\n")
        assert b"truncated in place" in put.stderr.readline()
        kill_process(put)
    append(log, lines(20, 60))
    ended = run(follow(stream, log, "--once"))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert stream.content() == lines(0, 10) + b"new\n" + lines(20, 60)


def test_truncation_while_nobody_looked_is_told_too(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    assert run(follow(stream, log, "--once")).returncode == 0
    os.truncate(log, 0)
    append(log, b"new\n")
    ended = run(follow(stream, log, "--once"))
    assert TRUNCATED.search(ended.stderr.decode())
    assert stream.content() == lines(0, 10) + b"new\n"


def test_two_files_of_one_directory_are_two_producers(stream: StreamUnderTest, tmp_path: Path) -> None:
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    with started(follow(stream, one)), started(follow(stream, two, "--name", "named")):
        for number in range(100):
            append(one, b"one %d\n" % number)
            append(two, b"two %d\n" % number)
        wait_size(stream.path, 2 * len(one.read_bytes()))
    found = stream.content().splitlines(keepends=True)
    assert b"".join(line for line in found if line.startswith(b"one")) == one.read_bytes()
    assert b"".join(line for line in found if line.startswith(b"two")) == two.read_bytes()


def test_what_the_collator_refuses_ends_it_with_file_and_byte(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, b"fine\n" + b"x" * (3 << 20))
    ended = run(follow(stream, log))
    assert ended.returncode == 1
    assert f"{log}, at byte 5".encode() in ended.stderr


def test_idle_it_does_nothing(stream: StreamUnderTest, tmp_path: Path) -> None:
    """Not one switch of context while nothing happens to the file; one more line shows that it was awake."""
    log = tmp_path / "app.log"
    append(log, b"one\n")
    with started(follow(stream, log)) as put:
        assert_content_becomes(stream, b"one\n")

        def switches() -> int:
            return sum(
                int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)[0])
                for status in Path(f"/proc/{put.pid}/task").glob("*/status")
            )

        def is_idle() -> bool:
            try:
                before = switches()
                with pytest.raises(subprocess.TimeoutExpired):
                    put.wait(1.5)
                return switches() - before <= 2
            except FileNotFoundError:
                return False  # a thread has just ended

        wait_until(is_idle, "it is idle")
        append(log, b"two\n")
        assert_content_becomes(stream, b"one\ntwo\n")


# --- truncated in place, copied, and inodes that come back


def follow_once(stream: StreamUnderTest, log: Path, *options: str) -> str:
    """What it says while it sends all that there is."""
    ended = run(follow(stream, log, "--once", *options))
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.decode()


def copytruncate(log: Path, keep: int = 3) -> None:
    """As logrotate does it."""
    for number in range(keep, 0, -1):
        if log.with_name(f"{log.name}.{number}").exists():
            log.with_name(f"{log.name}.{number}").rename(log.with_name(f"{log.name}.{number + 1}"))
    shutil.copy2(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


def test_a_copy_has_what_was_missing_though_the_file_has_outgrown_what_was_sent(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    """Copytruncate while it was down."""
    log = tmp_path / "app.log"
    append(log, lines(0, 50))
    follow_once(stream, log)
    append(log, lines(50, 69))
    copytruncate(log)
    append(log, lines(100, 300))
    told = follow_once(stream, log)
    assert stream.content() == lines(0, 69) + lines(100, 300)
    assert f"{log}.1 is a copy of what {log} held; it is sent from byte {len(lines(0, 50))} on" in told
    assert TRUNCATED.search(told)
    assert follow_once(stream, log) == ""
    assert stream.content() == lines(0, 69) + lines(100, 300)


def test_without_a_copy_it_says_that_lines_may_be_lost(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(0, 50))
    follow_once(stream, log)
    append(log, lines(50, 60))
    os.truncate(log, 0)
    append(log, lines(100, 300))
    assert TRUNCATED.search(follow_once(stream, log))
    assert stream.content() == lines(0, 50) + lines(100, 300)
    append(log, lines(300, 310))
    assert follow_once(stream, log) == ""
    assert stream.content() == lines(0, 50) + lines(100, 310)


def test_contents_that_begin_alike_are_told_apart_by_where_messages_end(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, b"# a heading\n" + lines(0, 50))
    follow_once(stream, log)
    copytruncate(log)
    append(log, b"# a heading\n" + lines(1000, 1200))
    follow_once(stream, log)
    copytruncate(log)
    append(log, b"# a heading\n" + lines(2000, 2001))
    follow_once(stream, log)
    content = b"# a heading\n".join([b"", lines(0, 50), lines(1000, 1200), lines(2000, 2001)])
    assert stream.content() == content
    assert follow_once(stream, log) == ""
    assert stream.content() == content


def test_copies_that_move_on_are_not_sent_again_and_have_what_a_stopped_process_missed(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    with started(follow(stream, log)) as put:
        assert_content_becomes(stream, lines(0, 10))
        for turn in range(10, 40, 10):
            put.send_signal(signal.SIGSTOP)
            append(log, lines(turn, turn + 5))
            copytruncate(log)
            append(log, lines(turn + 5, turn + 10))
            put.send_signal(signal.SIGCONT)
            assert_content_becomes(stream, lines(0, turn + 10))


def test_a_file_that_outgrew_what_was_sent_between_two_looks_is_known_by_its_last_bytes(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    with started(follow(stream, log)) as put:
        assert_content_becomes(stream, lines(0, 10))
        put.send_signal(signal.SIGSTOP)
        copytruncate(log)
        append(log, lines(100, 200))
        put.send_signal(signal.SIGCONT)
        assert_content_becomes(stream, lines(0, 10) + lines(100, 200))
        assert b"truncated in place" in put.stderr.readline()


@pytest.fixture
def recycling(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that gives the number of a deleted file to a new one: ext4 does, and tmpfs does not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as other:
        for folder in (tmp_path, Path(other)):
            if gives_numbers_again(folder):
                yield folder
                return
        pytest.skip("neither the folder of the tests nor /var/tmp gives numbers of inodes again")


def gives_numbers_again(folder: Path) -> bool:
    probe = folder / "probe"
    numbers = []
    for _ in range(100):
        probe.touch()
        numbers.append(probe.stat().st_ino)
        probe.unlink()
    return len(set(numbers)) < len(numbers)


def test_where_inodes_have_no_generation_a_number_that_comes_back_is_another_file(
    stream: StreamUnderTest, recycling: Path
) -> None:
    """As with `rotate 1` of logrotate: the deleted file's number is soon given to a new one."""
    log, old = recycling / "app.log", recycling / "app.log.1"
    numbers = set()
    again = False
    command = [sys.executable, "-c", WITHOUT_GENERATIONS, stream.acks, "--follow", str(log)]
    turn = 0
    append(log, lines(0, 10))
    with started(command):
        while not again or turn < 5:
            assert_content_becomes(stream, lines(0, 10 * turn + 10))
            numbers.add(log.stat().st_ino)
            log.rename(old)  # what has this name is deleted
            turn += 1
            append(log, lines(10 * turn, 10 * turn + 10))
            again = again or log.stat().st_ino in numbers
            assert turn < 100
        assert_content_becomes(stream, lines(0, 10 * turn + 10))
    for _ in range(2):  # and nobody looks
        turn += 1
        log.rename(old)
        append(log, lines(10 * turn, 10 * turn + 10))
    assert run([*command, "--once"]).returncode == 0
    assert stream.content() == lines(0, 10 * turn + 10)


def test_a_compressed_file_that_may_hold_what_was_never_sent_is_told(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    append(tmp_path / "app.log.1.gz", b"old")
    os.utime(tmp_path / "app.log.1.gz", (1, 1))
    assert "app.log.1.gz is compressed" in follow_once(stream, log)
    assert follow_once(stream, log) == ""
    log.rename(tmp_path / "app.log.1")
    (tmp_path / "app.log.1.gz").rename(tmp_path / "app.log.4.gz")
    for number in (3, 2):  # rotated, compressed, and never seen
        append(tmp_path / f"app.log.{number}.gz", b"new")
    append(log, lines(20, 30))
    told = follow_once(stream, log).splitlines()
    assert [re.findall(r"app\.log\.\d\.gz", line) for line in told] == [["app.log.3.gz"], ["app.log.2.gz"]]
    assert stream.content() == lines(0, 10) + lines(20, 30)


def test_one_line_that_had_no_end_is_completed_and_sent_once(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, b"unfinished")
    log.rename(tmp_path / "app.log.1")
    append(log, b"")
    for _ in range(2):
        assert follow_once(stream, log) == ""
        assert stream.content() == b"unfinished\n"
