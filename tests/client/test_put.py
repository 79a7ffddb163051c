"""Promises of the command tailsrv-put: standard input, files, and files that grow and are rotated."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.client.streams import PUT, Peer, StreamUnderTest, kill_process, lines, run, started, unused_address
from tests.support.daemons import PATIENCE, wait_size, wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        yield stream


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def wait_content(stream: StreamUnderTest, content: bytes) -> None:
    wait_size(stream.path, len(content))
    assert stream.content() == content


@pytest.mark.parametrize("options", [["--raw"], [], ["--name", "a"], ["--name", ""]])
def test_standard_input_becomes_messages_and_a_last_line_is_completed(
    stream: StreamUnderTest, options: list[str]
) -> None:
    """On the raw port and on the acknowledged one."""
    address = stream.raw if options == ["--raw"] else stream.acks
    ended = run([*PUT, address, *options], lines(0, 1000) + b"last")
    assert (ended.returncode, ended.stderr) == (0, b"")
    wait_content(stream, lines(0, 1000) + b"last\n")


def test_a_file_is_sent_and_acknowledged_when_it_returns(stream: StreamUnderTest, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(lines(0, 50_000))
    ended = run([*PUT, stream.acks, "--name", "a", "--progress", str(source)])
    assert ended.returncode == 0
    assert stream.content() == source.read_bytes()
    assert re.search(rb"B/s\n", ended.stderr)


@pytest.mark.parametrize(
    ("framing", "data", "sent", "code"),
    [
        ("u16be", b"\0\1a\0\2bc", b"\0\1a\0\2bc", 0),
        ("u16be", b"\0\1a\0\2b", b"\0\1a", 1),
        ("nul", b"a\0b", b"a\0b\0", 0),
        ("varint", b"\1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\1a", 1),
    ],
)
def test_input_of_any_framing_is_sent_as_far_as_it_is_whole(
    tmp_path: Path, framing: str, data: bytes, sent: bytes, code: int
) -> None:
    with StreamUnderTest(tmp_path / "s", framing) as stream:
        ended = run([*PUT, stream.acks, "--name", "a", "--framing", framing], data)
        assert ended.returncode == code
        assert ended.stderr.count(b"\n") == code
        wait_content(stream, sent)


def test_a_message_that_is_too_long_is_an_error_that_names_its_place(stream: StreamUnderTest) -> None:
    ended = run([*PUT, stream.acks, "--name", "a", "--max-message-bytes", "100"], b"fine\n" + b"x" * 500_000)
    assert ended.returncode == 1
    assert b"at byte 5 of the input" in ended.stderr
    wait_content(stream, b"fine\n")


def test_it_waits_for_a_collator(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        address = stream.acks
        stream.kill("tailsrv-collate")
        with started([*PUT, f"{unused_address()},{address}", "--name", "a"], stdin=subprocess.PIPE) as put:
            put.stdin.write(b"early\n")
            put.stdin.close()
            assert b"next: " in put.stderr.readline()
            assert stream.acks == address
            assert put.wait(PATIENCE) == 0
        assert stream.content() == b"early\n"


def test_a_raw_connection_that_breaks_is_told_with_what_to_do() -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1)
        sock.close()

    with Peer(serve) as breaking:
        ended = run([*PUT, breaking.address, "--raw"], b"x\n" * 5_000_000)
    assert ended.returncode == 1
    assert b"acknowledged port (4323)" in ended.stderr


def test_a_spool_outlives_a_kill_while_no_collator_is_there(stream: StreamUnderTest, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with started([*PUT, unused_address(), "--name", "a", "--spool", str(spool)], stdin=subprocess.PIPE) as put:
        put.stdin.write(lines(0, 100))
        put.stdin.flush()
        wait_size(spool, len(lines(0, 100)))
        kill_process(put)
    ended = run([*PUT, stream.acks, "--name", "a", "--spool", str(spool)], lines(100, 110))
    assert ended.returncode == 0
    assert stream.content() == lines(0, 110)


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "a b"],
        ["--raw", "--name", "a"],
        ["--raw", "--follow", "x"],
        ["--timeout", "0"],
        ["--timeout", "1y"],
        ["--spool", "x"],
        ["--once"],
        ["--follow", "x", "--spool", "y"],
        ["--follow", "x", "/etc/hostname"],
        ["--framing", "x"],
        ["/no/such/file"],
    ],
)
def test_a_wrong_command_line_exits_2_after_one_line(options: list[str]) -> None:
    ended = run([*PUT, "127.0.0.1:1", *options])
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)


def test_it_ends_of_the_signal_without_a_word(stream: StreamUnderTest) -> None:
    for number, signum in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        with started([*PUT, stream.acks, "--name", "a"], stdin=subprocess.PIPE) as put:
            put.stdin.write(b"x\n")
            put.stdin.flush()
            wait_size(stream.path, 2 * number)
            assert kill_process(put, signum) == -signum
            assert put.stderr.read() == b""


# --- --follow


def follow(stream: StreamUnderTest, log: Path, *options: str) -> list[str]:
    return [*PUT, stream.acks, "--follow", str(log), *options]


def test_it_sends_what_is_appended_line_by_line(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)):
        append(log, b"one\ntw")
        wait_content(stream, b"one\n")
        append(log, b"o\n")
        wait_content(stream, b"one\ntwo\n")


def test_rotation_ends_the_old_file_before_the_new_one_begins(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)), log.open("ab") as old:
        old.write(b"one\n")
        old.flush()
        wait_content(stream, b"one\n")
        log.rename(tmp_path / "app.log.1")
        append(log, b"three\n")
        old.write(b"two\nunfinished")
        old.close()
        wait_content(stream, b"one\ntwo\nunfinished\nthree\n")


def test_an_old_file_that_a_writer_keeps_open_does_not_hold_up_the_new_one(
    stream: StreamUnderTest, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    with started(follow(stream, log)), log.open("ab") as old:
        old.write(b"one\n")
        old.flush()
        wait_content(stream, b"one\n")
        log.rename(tmp_path / "app.log.1")
        append(log, b"two\n")
        wait_content(stream, b"one\ntwo\n")
        old.write(b"late\n")
        old.flush()
        wait_content(stream, b"one\ntwo\nlate\n")


def test_a_file_that_is_moved_away_and_back_is_followed_on(stream: StreamUnderTest, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, b"one\n")
    with started(follow(stream, log)):
        wait_content(stream, b"one\n")
        log.rename(tmp_path / "away")
        (tmp_path / "away").rename(log)
        append(log, b"two\n")
        wait_content(stream, b"one\ntwo\n")


def test_rotations_that_nobody_watched_are_made_up_for(stream: StreamUnderTest, tmp_path: Path) -> None:
    """Killed, three rotations meanwhile, started again: nothing is missing and nothing comes twice."""
    log = tmp_path / "app.log"
    append(log, lines(0, 10))
    with started(follow(stream, log)) as put:
        wait_content(stream, lines(0, 10))
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
            wait_content(stream, b"one\nthree\n")  # it was quiet for long enough
            old.write(b"late\n")
            old.flush()
            wait_content(stream, b"one\nthree\nlate\n")


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
        wait_content(stream, lines(0, 10))
        (tmp_path / "app.log.1").write_bytes(log.read_bytes())
        os.truncate(log, 0)
        append(log, b"new\n")
        wait_content(stream, lines(0, 10) + b"new\n")
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
    assert b"truncated in place while nobody looked" in ended.stderr
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
        wait_content(stream, b"one\n")

        def switches() -> int:
            total = 0
            for task in os.listdir(f"/proc/{put.pid}/task"):
                with open(f"/proc/{put.pid}/task/{task}/status", encoding="ascii") as status:
                    total += int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status.read(), re.MULTILINE)[0])
            return total

        before = -1
        while before != (before := switches()):
            wait_until(lambda: True)
        with pytest.raises(subprocess.TimeoutExpired):
            put.wait(1.5)
        assert switches() - before <= 2
        append(log, b"two\n")
        wait_content(stream, b"one\ntwo\n")


def test_help_names_every_option_of_its_page() -> None:
    with open(os.path.dirname(__file__) + "/../../docs/tailsrv-put.md", encoding="utf-8") as text:
        documented = set(re.findall(r"`(--[a-z-]+)", text.read()))
    offered = set(re.findall(r"(?<![\w-])--[a-z-]+", run([*PUT, "--help"]).stdout.decode()))
    assert documented == offered
