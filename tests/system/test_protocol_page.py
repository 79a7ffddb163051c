"""docs/protocols.md speaks the truth: its dialogues are held with the daemons, byte by byte."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tailsrv_formats.commit_mark import encode_line
from tests.support.daemons import Daemon
from tests.support.sockets import read_exactly
from tests.support.waits import wait_size

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "protocols.md"
DIALOGUES = re.findall(r"^```dialogue (.+?)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def _steps(text: str) -> Iterator[tuple[str, bytes]]:
    for line in text.splitlines():
        verb, _, argument = line.partition(" ")
        yield verb, argument.encode("latin-1").decode("unicode_escape").encode("latin-1")


def _receive(peer: socket.socket, expected: bytes) -> None:
    """Exactly these bytes come next; an error's wording is nobody's promise, only how it begins."""
    assert read_exactly(peer, len(expected)) == expected


def _line(peer: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(peer, 1) or pytest.fail(f"ended within a line: {line!r}")
    return line


@pytest.mark.parametrize(("command", "text"), DIALOGUES, ids=[str(number) for number in range(len(DIALOGUES))])
def test_a_dialogue_is_as_it_is_written(tmp_path: Path, command: str, text: str) -> None:
    name, *options = command.split()
    file = tmp_path / "stream"
    lane = 0
    if name == "tailsrv-collate":
        options += ["--ack-listen", "127.0.0.1:0"]
        if "--lane" in options:
            at = options.index("--lane")
            del options[at : at + 2]
            lane = 1
    steps = list(_steps(text))
    assert steps
    if steps[0][0] == "before":
        file.write_bytes(steps.pop(0)[1])
    with Daemon(name, file, "--listen", "127.0.0.1:0", *options) as daemon:
        peer = daemon.connect(lane)
        for verb, argument in steps:
            match verb:
                case "send":
                    peer.sendall(argument)
                case "recv":
                    _receive(peer, argument)
                case "json":
                    reply = json.loads(_line(peer))
                    assert json.loads(argument).items() <= reply.items()
                case "fin":
                    peer.shutdown(socket.SHUT_WR)
                case "end":
                    assert peer.recv(1) == b""
                case "reconnect":
                    peer.close()
                    peer = daemon.connect(lane)
                case "file":
                    wait_size(file, len(argument))
                    assert file.read_bytes() == argument
                case _:
                    pytest.fail(f"no such step: {verb}")
        peer.close()


def test_the_marks_of_the_page_are_marks() -> None:
    shown = re.findall(r"^    (\d{20}) [0-9a-f]{8}$", PAGE.read_text(), re.MULTILINE)
    assert len(shown) == 2
    for digits in shown:
        assert encode_line(int(digits)).decode() in PAGE.read_text().replace("    ", "")


def test_there_are_dialogues_of_every_daemon() -> None:
    assert {command.split()[0] for command, _ in DIALOGUES} == {"tailsrv", "tailsrv-collate", "tailsrv-index"}
