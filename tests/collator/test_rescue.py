"""A rescue moves foreign bytes into a file of their own: all of them, once, and never half of them under its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collator import rescue
from collator.rescue import Rescue
from collator.streamfile import StreamFile
from tailsrv_runtime.errors import FatalError
from tests.support.collators import Producer, collate

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def file(tmp_path: Path) -> Iterator[StreamFile]:
    """A stream that holds one message."""
    (tmp_path / "stream").write_bytes(b"one\n")
    file = StreamFile(str(tmp_path / "stream"))
    yield file
    file.close()


def test_rescues_of_one_second_have_names_of_their_own(file: StreamFile, tmp_path: Path) -> None:
    paths = []
    for junk in (b"a", b"b", b"c"):
        with (tmp_path / "stream").open("ab", buffering=0) as other:
            other.write(junk)
        rescue = Rescue(file, 4)
        rescue.run()
        paths.append(rescue.path)
    assert len(set(paths)) == 3
    assert [Path(path).read_bytes() for path in paths] == [b"a", b"b", b"c"]


def test_a_rescue_takes_along_what_is_appended_meanwhile(file: StreamFile, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    late = [b"late\n", b"later\n"]
    with path.open("ab", buffering=0) as other:
        other.write(b"stranger\n")

        def append_more(_: int) -> None:
            if late:
                other.write(late.pop(0))

        rescue = Rescue(file, 4)
        rescue.run(append_more)
    assert path.read_bytes() == b"one\n"
    assert Path(rescue.path).read_bytes() == b"stranger\nlate\nlater\n"
    assert rescue.copied == 20


def test_a_rescue_takes_along_what_is_appended_while_it_is_made_durable(
    file: StreamFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stream"
    with path.open("ab", buffering=0) as other:
        other.write(b"stranger\n")
        sync = os.fsync

        def slow_sync(fd: int) -> None:
            sync(fd)
            monkeypatch.undo()
            other.write(b"late\n")

        monkeypatch.setattr(os, "fsync", slow_sync)
        rescue = Rescue(file, 4)
        rescue.run()
    assert path.read_bytes() == b"one\n"
    assert Path(rescue.path).read_bytes() == b"stranger\nlate\n"


@pytest.mark.parametrize("left", [4, 9])
def test_a_rescue_ends_when_another_process_shortens_the_file_meanwhile(
    file: StreamFile, tmp_path: Path, left: int
) -> None:
    path = tmp_path / "stream"
    with path.open("ab", buffering=0) as other:
        other.write(b"x" * (3 << 20))

    rescue = Rescue(file, 4)
    rescue.run(lambda _: os.truncate(path, left))
    assert path.read_bytes() == b"one\n"
    assert rescue.copied == 1 << 20


def test_a_rescue_does_not_lengthen_a_file_that_became_too_short(file: StreamFile, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with path.open("ab", buffering=0) as other:
        other.write(b"stranger\n")
    rescue = Rescue(file, 4)
    with pytest.raises(FatalError, match="truncated below byte 4"):
        rescue.run(lambda _: os.truncate(path, 2))
    assert path.read_bytes() == b"on"
    assert not list(tmp_path.glob("*.rescued-*"))


def test_a_rescue_that_is_killed_leaves_no_file_under_the_final_name(tmp_path: Path) -> None:
    """The first start is killed when half the bytes are copied; the second one rescues all of them, once."""
    path = tmp_path / "stream"
    with collate(path) as collator:
        producer = Producer(collator, "ada")
        producer.send(b"one\n")
        producer.until(4)
    junk = b"by hand\n" * (rescue.COPY_BYTES // 4)
    with path.open("ab") as file:
        file.write(junk)
    program = (
        "import os, signal, sys\n"
        "from collator import rescue\n"
        "from collator.cli import main\n"
        "honest = rescue.os.fsync\n"
        "def fsync(fd):\n"
        "    if 'rescued' in os.readlink(f'/proc/self/fd/{fd}'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    honest(fd)\n"
        "rescue.os.fsync = fsync\n"
        "main()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path), "--listen", "127.0.0.1:0"], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.glob("stream.rescued-*")) == []
    assert path.read_bytes() == b"one\n" + junk
    with collate(path):
        (rescued,) = tmp_path.glob("*rescued*")
        assert rescued.read_bytes() == junk
    assert list(tmp_path.glob(".*")) == []
