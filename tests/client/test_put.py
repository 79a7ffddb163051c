"""Promises of the command tailsrv-put: standard input and files. `--follow` is in test_follow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.streams import (
    PUT,
    Peer,
    StreamUnderTest,
    assert_content_becomes,
    kill_process,
    lines,
    run,
    started,
    unused_address,
)
from tests.support.waits import PATIENCE, wait_size

if TYPE_CHECKING:
    import socket
    from pathlib import Path


@pytest.mark.parametrize("options", [["--raw"], [], ["--name", "a"], ["--name", ""]])
def test_standard_input_becomes_messages_and_a_last_line_is_completed(
    stream: StreamUnderTest, options: list[str]
) -> None:
    """On the raw port and on the acknowledged one."""
    address = stream.raw if options == ["--raw"] else stream.acks
    ended = run([*PUT, address, *options], lines(0, 1000) + b"last")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert_content_becomes(stream, lines(0, 1000) + b"last\n")


def test_a_file_is_sent_and_acknowledged_when_it_returns(stream: StreamUnderTest, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(lines(0, 50_000))
    ended = run([*PUT, stream.acks, "--name", "a", "--progress", str(source)])
    assert ended.returncode == 0
    assert stream.content() == source.read_bytes()
    assert re.search(rb"B/s  100 %\n", ended.stderr)


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
        assert_content_becomes(stream, sent)


def test_a_message_that_is_too_long_is_an_error_that_names_its_place(stream: StreamUnderTest) -> None:
    ended = run([*PUT, stream.acks, "--name", "a", "--max-message-bytes", "100"], b"fine\n" + b"x" * 500_000)
    assert ended.returncode == 1
    assert b"at byte 5 of the input" in ended.stderr
    assert_content_becomes(stream, b"fine\n")


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


def test_help_names_every_option_of_its_page() -> None:
    with open(os.path.dirname(__file__) + "/../../docs/tailsrv-put.md", encoding="utf-8") as text:
        documented = set(re.findall(r"`(--[a-z-]+)", text.read()))
    offered = set(re.findall(r"(?<![\w-])--[a-z-]+", run([*PUT, "--help"]).stdout.decode()))
    assert documented == offered
