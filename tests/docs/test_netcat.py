"""docs/netcat.md: each variant of netcat reads, follows, writes and asks with the flags that the page shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.streams import StreamUnderTest, run, started
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "netcat.md").read_text()
NEEDS = {
    "OpenBSD nc": "nc",
    "ncat": "ncat",
    "nc.traditional": "nc.traditional",
    "socat": "socat",
    "busybox nc": "busybox",
}
ROWS = {
    cells[0]: [cell.strip("`").replace("\\|", "|") for cell in cells[1:]]
    for cells in (re.split(r"(?<!\\) \| ", row) for row in re.findall(r"^\| ([^|]+ \| `.*`) \|$", PAGE, re.MULTILINE))
}
VARIANTS = [pytest.param(name, marks=pytest.mark.needs(NEEDS[name]) if name in NEEDS else ()) for name in ROWS]
ACKNOWLEDGED = [
    pytest.param(line, marks=pytest.mark.needs(re.split(r"\| ", line)[1].split()[0]))
    for line in re.findall(r"^\(echo my-app.*$", PAGE, re.MULTILINE)
]


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StreamUnderTest]:
    with StreamUnderTest(tmp_path / "stream") as stream:
        yield stream


def localised(stream: StreamUnderTest, command: str) -> list[str]:
    """The command with the address of the daemon that it connects to."""
    for port, role in (("4321", "broadcast"), ("4322", "raw"), ("4323", "acks"), ("4324", "index")):
        found = re.search(rf"fileserver([ :/]){port}", command)
        if found:
            command = command.replace(found[0], getattr(stream, role).replace(":", found[1]))
    assert "fileserver" not in command
    return ["bash", "-c", command]


def test_the_page_shows_every_variant() -> None:
    assert set(ROWS) == {*NEEDS, "bash alone"}
    assert len(ACKNOWLEDGED) == len(NEEDS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_reads_what_is_there_and_ends(stream: StreamUnderTest, variant: str) -> None:
    held = b"line\n" * 200_000  # more than the buffers of both sockets
    stream.append(held)
    ended = run(localised(stream, ROWS[variant][0]))
    assert (ended.returncode, ended.stdout) == (0, held)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_follows_the_stream(stream: StreamUnderTest, variant: str) -> None:
    stream.append(b"first\n")
    command = localised(stream, ROWS[variant][1])
    with started(command, stdin=subprocess.DEVNULL, process_group=0) as process:
        assert process.stdout.readline() == b"first\n"
        # Longer than socat's half second after the end of its input.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        stream.append(b"later\n")
        assert process.stdout.readline() == b"later\n"
        subprocess.run(["bash", "-c", f"kill -- -{process.pid}"], check=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_writes_lines_and_ends(stream: StreamUnderTest, variant: str) -> None:
    ended = run(localised(stream, ROWS[variant][2]))
    assert (ended.returncode, ended.stdout) == (0, b"")
    wait_until(lambda: stream.path.exists() and stream.content() == b"1\n2\n3\n", "the lines are in the file")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_asks_the_index_and_ends(stream: StreamUnderTest, variant: str) -> None:
    stream.append(b"first\n")
    ended = run(localised(stream, ROWS[variant][3]))
    assert (ended.returncode, ended.stdout) == (0, b"0\n")


@pytest.mark.parametrize("command", ACKNOWLEDGED)
def test_a_variant_gets_its_acknowledgement(stream: StreamUnderTest, command: str) -> None:
    ended = run(localised(stream, command))
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[0] == b"0 0"
    assert ended.stdout.splitlines()[-1] == b"6 6"
