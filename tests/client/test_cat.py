"""Promises of the command tailsrv-cat, run as users run it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.streams import CAT, Peer, StreamUnderTest, lines, run, started, unused_address
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(lines(0, 100))
        yield stream


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path_factory.mktemp("still") / "s.log") as stream:
        stream.append(lines(0, 100) + b"any \xff\x00 byte\n")
        yield stream


CONTENT = lines(0, 100) + b"any \xff\x00 byte\n"


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["--until", "now"], CONTENT),
        (["--from", "start", "--until", "14"], lines(0, 2)),
        (["--from", "7", "--until", "14"], lines(1, 2)),
        (["--from", "-12", "--until", "now"], CONTENT[-12:]),
        (["--from", "end", "--until", "now"], b""),
        (["--count", "2"], lines(0, 2)),
        (["--count", "0"], b""),
        (["--from", "message:3", "--until", "message:5"], lines(3, 5)),
        (["--from", "last:2", "--count", "1"], lines(99, 100)),
        (["--from", "time:0", "--until", "time:4"], b""),
        (["--grep", "line 1[0-9]", "--count", "3"], lines(10, 13)),
        (["--grep", "\\d$", "--until", "message:4"], lines(0, 4)),
        (["--until", "now", "--grep", "no such"], b""),
        (["--count", "2", "--until", "now", "--from", "message:1"], lines(1, 3)),
        (
            ["--from", "message:8", "--count", "2", "--format", r"%n %o %e %S %s%%\n"],
            b"8 56 63 6 line 8%\n9 63 70 6 line 9%\n",
        ),
        (["--count", "1", "--json"], b'{"number":0,"offset":0,"end":7,"payload":"line 0"}\n'),
    ],
)
def test_it_prints_what_was_asked_for(still: StreamUnderTest, options: list[str], output: bytes) -> None:
    indexed = ["--index", still.index] if any("message:" in o or "last:" in o or "time:" in o for o in options) else []
    ended = run([*CAT, still.broadcast, *indexed, *options])
    assert (ended.stdout, ended.stderr, ended.returncode) == (output, b"", 0)


def test_json_escapes_any_bytes_and_knows_times(still: StreamUnderTest) -> None:
    ended = run([*CAT, still.broadcast, "--index", still.index, "--from", "last:2", "--until", "now", "--json"])
    first, second = map(json.loads, ended.stdout.splitlines())
    assert (first["number"], first["payload"]) == (99, "line 99")
    assert first["time"].endswith("Z")
    assert second["payload_base64"] == "YW55IP8AIGJ5dGU="


def test_a_time_is_printed_where_there_is_an_indexer(still: StreamUnderTest) -> None:
    ended = run([*CAT, still.broadcast, "--index", still.index, "--count", "1", "--format", r"%t\n"])
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\n", ended.stdout)
    ended = run([*CAT, still.broadcast, "--count", "1", "--format", "%t"])
    assert (ended.returncode, ended.stdout) == (2, b"")


@pytest.mark.parametrize(
    "options",
    [
        ["--from", "x"],
        ["--until", "-1"],
        ["--format", "%q"],
        ["--grep", "("],
        ["--framing", "lines"],
        ["--from", "message:1"],
        ["--count", "-1"],
        ["--no-such"],
    ],
)
def test_a_wrong_command_line_exits_2_after_one_line(still: StreamUnderTest, options: list[str]) -> None:
    ended = run([*CAT, still.broadcast, *options])
    assert (ended.returncode, ended.stdout, ended.stderr.count(b"\n")) == (2, b"", 1)
    assert ended.stderr.startswith(b"tailsrv-cat: ")


def test_it_follows_and_says_nothing_when_it_is_interrupted(stream: StreamUnderTest) -> None:
    with started([*CAT, stream.broadcast, "--from", "-7"]) as cat:
        assert cat.stdout.read(7) == b"ine 99\n"
        stream.append(lines(100, 110))
        assert cat.stdout.read(len(lines(100, 110))) == lines(100, 110)
        cat.send_signal(signal.SIGINT)
        assert cat.wait(PATIENCE) == -signal.SIGINT
        assert cat.stderr.read() == b""


def test_it_reconnects_at_the_byte_where_it_was_and_says_so_in_one_line(stream: StreamUnderTest) -> None:
    address = stream.broadcast
    with started([*CAT, f"{unused_address()},{address}"]) as cat:
        assert cat.stdout.read(len(lines(0, 100))) == lines(0, 100)
        stream.kill("tailsrv")
        stream.append(lines(100, 200))
        assert stream.broadcast == address
        assert cat.stdout.read(len(lines(100, 200))) == lines(100, 200)
        cat.send_signal(signal.SIGTERM)
        assert cat.wait(PATIENCE) == -signal.SIGTERM
        assert b"next: " + address.encode() in cat.stderr.read()


@pytest.mark.parametrize("options", ["", "--json"])
def test_head_ends_it_without_noise_though_nothing_more_comes(still: StreamUnderTest, options: str) -> None:
    command = f"{' '.join(CAT)} {still.broadcast} {options} | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = run(["bash", "-c", command])
    assert ended.stderr == b""
    assert ended.stdout.count(b"\n") == 1
    assert ended.returncode == 128 + signal.SIGPIPE


def test_another_stream_is_refused_with_exit_code_1(stream: StreamUnderTest, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    assert run([*CAT, stream.broadcast, "--count", "5", "--checkpoint", checkpoint]).stdout == lines(0, 5)
    stream.path.write_bytes(b"x" * 1000)
    ended = run([*CAT, stream.broadcast, "--until", "now", "--checkpoint", checkpoint])
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"stream diverged" in ended.stderr


@pytest.mark.parametrize("options", [[], ["--json"], ["--grep", "line"], ["--grep", "line", "--count", "1000"]])
def test_with_a_checkpoint_the_runs_print_the_stream_once(
    stream: StreamUnderTest, tmp_path: Path, options: list[str]
) -> None:
    command = [*CAT, stream.broadcast, "--until", "now", "--checkpoint", str(tmp_path / "checkpoint"), *options]
    output = run(command).stdout
    stream.append(lines(100, 150))
    output += run(command).stdout + run(command).stdout
    assert output.count(b"line ") == 150
    if "--json" in options:
        assert [json.loads(line)["number"] for line in output.splitlines()] == list(range(150))
    else:
        assert output == lines(0, 150)


def test_stopped_by_a_signal_it_goes_on_behind_what_it_printed(stream: StreamUnderTest, tmp_path: Path) -> None:
    command = [*CAT, stream.broadcast, "--checkpoint", str(tmp_path / "checkpoint")]
    output = b""
    for turn in range(4):
        with started(command) as cat:
            output += cat.stdout.read(len(lines(100 * turn, 100 * turn + 100)))
            cat.send_signal(signal.SIGTERM if turn % 2 else signal.SIGINT)
            cat.wait(PATIENCE)
            output += cat.stdout.read()
        stream.append(lines(100 * turn + 100, 100 * turn + 200))
    assert output == lines(0, 400)


def test_lag_is_told_once_a_second(still: StreamUnderTest) -> None:
    with started([*CAT, still.broadcast, "--lag", "--index", still.index]) as cat:
        assert cat.stdout.read(len(CONTENT)) == CONTENT
        said = [cat.stderr.readline() for _ in range(2)]
        assert said[1] == b"lag: 0 bytes, 0 messages, 0.0 s behind\n"
    with started([*CAT, still.broadcast, "--lag"]) as cat:
        assert cat.stdout.read(len(CONTENT)) == CONTENT
        assert [cat.stderr.readline() for _ in range(2)][1] == b"lag: 0 bytes behind\n"


def test_lag_is_json_where_the_messages_are(still: StreamUnderTest) -> None:
    with started([*CAT, still.broadcast, "--lag", "--json", "--index", still.index]) as cat:
        for _ in CONTENT.splitlines():
            cat.stdout.readline()
        report = [json.loads(cat.stderr.readline()) for _ in range(2)][1]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", report.pop("time"))
        assert report == {"report": "lag", "bytes": 0, "messages": 0, "seconds": 0.0}
    with started([*CAT, still.broadcast, "--lag", "--json"]) as cat:
        report = json.loads(cat.stderr.readline())
        assert (report["messages"], report["seconds"]) == (None, None)


def test_lag_counts_what_a_slow_reader_has_not_taken(tmp_path: Path) -> None:
    with StreamUnderTest(tmp_path / "s.log") as stream:
        stream.append(b"x" * 99 + b"\n")
        size = 40_000_000
        with stream.path.open("ab") as file:
            file.write((b"x" * 99 + b"\n") * (size // 100))
        with started([*CAT, stream.broadcast, "--lag"]) as cat:
            said = [cat.stderr.readline() for _ in range(3)][-1]
        behind = int(said.removeprefix(b"lag: ").split()[0])
        assert size // 2 < behind <= size + 100


def test_progress_shows_bytes_and_rate(still: StreamUnderTest) -> None:
    ended = run([*CAT, still.broadcast, "--until", "now", "--progress"])
    assert re.search(rb"802 B  \S+ \SB/s  100 %\n", ended.stderr)


def test_on_a_terminal_a_short_transfer_shows_no_progress(still: StreamUnderTest) -> None:
    master, slave = pty.openpty()
    try:
        ended = subprocess.run(
            [*CAT, still.broadcast, "--until", "now"],
            stdout=subprocess.PIPE,
            stderr=slave,
            timeout=PATIENCE,
            check=True,
        )
        assert ended.stdout == CONTENT
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):
            os.read(master, 100)
    finally:
        os.close(master)
        os.close(slave)


def test_what_a_peer_sends_reaches_no_terminal_unescaped() -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b'{"error":"\\u001b[31m red"}\n')

    with Peer(serve, proves="index") as liar:
        ended = run([*CAT, unused_address(), "--index", liar.address, "--from", "last:1"])
    assert ended.returncode == 1
    assert b"\x1b" not in ended.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("name", ["cat", "put"])
def test_shells_are_given_completions(shell: str, name: str) -> None:
    variable = f"_TAILSRV_{name.upper()}_COMPLETE"
    command = {"cat": CAT}.get(name, [*CAT[:-1], "tailsrv_client.put"])
    script = run(command, env={**os.environ, variable: f"{shell}_source"})
    assert f"tailsrv-{name}".encode() in script.stdout
    words = {"COMP_WORDS": f"tailsrv-{name} --fra", "COMP_CWORD": "1" if shell != "fish" else "--fra"}
    completed = run(command, env={**os.environ, variable: f"{shell}_complete", **words})
    assert completed.stdout == b"--framing\n"
    words = {"COMP_WORDS": f"tailsrv-{name} --framing u32", "COMP_CWORD": "2" if shell != "fish" else "u32"}
    completed = run(command, env={**os.environ, variable: f"{shell}_complete", **words})
    assert completed.stdout == b"u32be\nu32le\n"


def test_bash_completes_with_the_script() -> None:
    script = run(CAT, env={**os.environ, "_TAILSRV_CAT_COMPLETE": "bash_source"}).stdout.decode()
    asking = (
        f'tailsrv-cat() {{ {" ".join(CAT)} "$@"; }}; export -f tailsrv-cat\n{script}\n'
        "COMP_WORDS=(tailsrv-cat --unt) COMP_CWORD=1\n"
        f"_tailsrv_cat_completion '{CAT[0]}' 2>/dev/null || true\n"
        "complete -p tailsrv-cat\n"
    )
    ended = run(["bash", "-c", asking])
    assert ended.stdout == b"complete -o default -F _tailsrv_cat_completion tailsrv-cat\n"


def test_an_unknown_shell_is_one_line() -> None:
    ended = run(CAT, env={**os.environ, "_TAILSRV_CAT_COMPLETE": "ksh_source"})
    assert ended.returncode == 2
    assert b"bash_source, zsh_source, fish_source" in ended.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tailsrv-cat --pro", "--progress"),
        ("tailsrv-cat host --framing u32", "u32be u32le"),
        ("tailsrv-cat host -o ", ""),
        ("tailsrv-cat host", ""),
    ],
)
def test_bash_completes_options_and_choices_and_leaves_the_rest_to_itself(
    line: str, words: str, tmp_path: Path
) -> None:
    command = tmp_path / "tailsrv-cat"
    command.write_text(f'#!/bin/sh\nexec {" ".join(CAT)} "$@"\n')
    command.chmod(0o755)
    typed = " ".join(f"'{word}'" for word in line.split(" "))
    script = f"""
        eval "$(_TAILSRV_CAT_COMPLETE=bash_source tailsrv-cat)"
        COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _tailsrv_cat_completion tailsrv-cat
        echo "${{COMPREPLY[@]}}"
    """
    ended = run(["bash", "-c", script], env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (ended.stdout.decode(), ended.stderr) == (f"{words}\n", b"")


def test_help_names_every_option_of_its_page() -> None:
    page = (os.path.dirname(__file__) + "/../../docs/tailsrv-cat.md", CAT)
    with open(page[0], encoding="utf-8") as text:
        documented = set(re.findall(r"`(--[a-z-]+)", text.read()))
    offered = set(re.findall(r"(?<![\w-])--[a-z-]+", run([*CAT, "--help"]).stdout.decode()))
    assert documented == offered
