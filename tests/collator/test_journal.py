"""A new journal takes the place of the old one whole, and from then on nothing goes to the old one any more."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collator.acks import Progress
from collator.journal import JournalFile, boot_id
from tailsrv_formats.journal import Record, decode, producers
from tailsrv_runtime.directory import Directory, NewFile, SyncFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST = Record(0, 0, 0, 0)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory(str(tmp_path / "stream"))
    yield directory
    directory.close()


@pytest.fixture
def journal(tmp_path: Path, directory: Directory) -> Iterator[JournalFile]:
    """A journal with one producer in it."""
    journal = JournalFile(
        str(tmp_path / "stream"),
        directory,
        framing="newline",
        sync="always",
        sample=FIRST,
        producers=[(b"ada", Progress(), 5, 5)],
    )
    yield journal
    journal.close()


def content(journal: JournalFile) -> dict[bytes, tuple[int, int]]:
    """What the file under the journal's name says."""
    data = Path(journal.path).read_bytes()
    read = decode(data, boot_id())
    return producers(data, read, len(read.records))


def is_in_use(journal: JournalFile) -> bool:
    return os.path.samestat(os.fstat(journal.fd), os.stat(journal.path))


def test_after_a_rename_that_worked_and_a_sync_that_failed_the_new_one_is_in_use(
    journal: JournalFile, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SyncFailedError, match="nothing more is acknowledged"):  # whatever its number
        journal.rewrite(NewFile(directory, journal.name), FIRST, [(b"bob", Progress(), 7, 7)])
    assert is_in_use(journal)
    journal.append(Record(0, 9, 0, 1), *journal.entries([(b"eve", Progress(), 9, 9)]))
    assert content(journal) == {b"bob": (7, 7), b"eve": (9, 9)}


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "rename"])
def test_when_the_new_one_cannot_be_made_the_old_one_stays_in_use(
    journal: JournalFile, directory: Directory, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        journal.rewrite(NewFile(directory, journal.name), FIRST, [(b"bob", Progress(), 7, 7)])
    monkeypatch.undo()
    assert is_in_use(journal)
    journal.append(Record(0, 9, 0, 1), *journal.entries([(b"eve", Progress(), 9, 9)]))
    assert content(journal) == {b"ada": (5, 5), b"eve": (9, 9)}
    assert sorted(os.listdir(directory.path)) == ["stream.producers"]
    journal.rewrite(NewFile(directory, journal.name), FIRST, [(b"bob", Progress(), 7, 7)])
    assert content(journal) == {b"bob": (7, 7)}


def test_names_are_right_also_after_the_directory_was_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    directory = Directory(str(old / "stream"))
    old.rename(new)
    old.mkdir()
    os.close(NewFile(directory, "stream.commit").put(b"content"))
    assert (new / "stream.commit").read_bytes() == b"content"
    assert not list(old.iterdir())
    directory.close()


def test_a_temporary_name_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path, directory: Directory) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".stream.commit.new").symlink_to(victim)
    os.close(NewFile(directory, "stream.commit").put(b"content"))
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "stream.commit").read_bytes() == b"content"
