"""`tailsrv-check` finds where a stream and the files beside it disagree, and changes none of them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from compose.inspection import check
from tailsrv_formats.framing import make_framing
from tests.support.collators import Producer, collate, raw, wait_committed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stream of two producers, one of them named, after a clean stop."""
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"raw line\n")
        wait_committed(path, 9)
        producer = Producer(collator, "ada")
        assert producer.told() == (0, 0)
        for acked in (5, 10, 15):
            producer.send(b"line\n")
            assert producer.told() == (acked, 9 + acked)
        assert collator.stop() == 0
    return path


def findings(path: Path) -> str:
    return "\n".join(check(str(path)).findings)


def test_a_stream_in_order_is_described_and_exits_0(path: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    done = subprocess.run([sys.executable, "-m", "compose.check", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "24 bytes, 24 committed, 4 messages (newline), 0 bytes uncommitted" in done.stdout
    assert "producer ada: 15 bytes acknowledged, up to byte 24" in done.stdout
    assert done.stdout.endswith("in order\n")
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


def test_findings_are_lines_and_exit_1(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")
    done = subprocess.run([sys.executable, "-m", "compose.check", path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "finding: " in done.stdout
    assert "4 bytes from byte 24 on are not committed" in done.stdout


def test_a_changed_file_is_found(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:15])
    assert "consumers may have seen 24" in findings(path)
    path.write_bytes(data[:10] + b"L" + data[11:])
    assert "do not match the checksum of a commit" in findings(path)
    path.write_bytes(data[:23] + b"x")
    assert "byte 24 is not a message boundary, but is producer ada's AT" in findings(path)


def test_a_damaged_journal_a_damaged_mark_and_a_missing_one_are_found(path: Path) -> None:
    journal, mark = path.with_name("stream.producers"), path.with_name("stream.commit")
    content, said = journal.read_bytes(), mark.read_bytes()
    journal.write_bytes(content[:150] + b"!" + content[151:])
    assert "damaged" in findings(path)
    journal.write_bytes(content)
    mark.write_bytes(b"x" * 60)
    assert "neither of its lines is valid" in findings(path)
    mark.unlink()
    assert "is missing" in findings(path)
    mark.write_bytes(said)
    assert findings(path) == ""


@pytest.mark.parametrize("framing", ["newline", "u32be", "varint"])
def test_framing_is_checked_to_the_last_byte(tmp_path: Path, framing: str) -> None:
    frames = make_framing(framing)
    whole = b"".join(frames.wrap(b"x" * size) for size in range(0, 9000, 7))
    path = tmp_path / "alone"
    path.write_bytes(whole)
    report = check(str(path), framing=framing)
    assert not report.findings
    assert any("1286 messages" in fact for fact in report.facts)
    path.write_bytes(whole + frames.wrap(b"y" * 100)[:-1])
    (finding,) = check(str(path), framing=framing).findings
    assert f"byte {len(whole)}: an incomplete message" in finding
    if framing != "newline":
        path.write_bytes(whole + b"\xff" * 12)
        (finding,) = check(str(path), framing=framing).findings
        assert f"byte {len(whole)}" in finding


def test_messages_larger_than_a_block_are_walked(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (9 << 20) + b"\nshort\n")
    assert not check(str(path)).findings
    (finding,) = check(str(path), max_message_bytes=1 << 20).findings
    assert "byte 0" in finding


def test_what_is_missing_or_no_file_is_one_line(tmp_path: Path) -> None:
    assert "cannot be read" in findings(tmp_path / "nothing")
    assert "not a regular file" in findings(tmp_path)
