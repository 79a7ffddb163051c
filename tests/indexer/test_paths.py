"""An index takes the place of no other file, and an index that was set aside is never overwritten."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from indexer.paths import COPIES
from tests.support.daemons import Daemon
from tests.support.indexers import Asker, index
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT = b"one\ntwo\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "place" / "stream"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(found): found.read_bytes() for found in sorted(folder.rglob("*")) if found.is_file()}


def refused(path: Path, *options: object) -> str:
    """The one line with which it refuses to start; nothing has changed by then."""
    before = snapshot(path.parent.parent)
    with Daemon("tailsrv-index", path, "--listen", "127.0.0.1:0", *map(str, options), ready=False) as daemon:
        assert daemon.wait() in {1, 2}
        log = daemon.log()
    assert len(log.splitlines()) == 1
    assert "Traceback" not in log
    assert snapshot(path.parent.parent) == before
    return log


COMPANIONS = [
    "",
    ".commit",
    ".producers",
    ".base",
    ".positions",
    ".00000000000000000007",
    ".rescued-20261124T010203Z-17",
    ".producers.00000000000000000007",
    ".positions.base",
]


@pytest.mark.parametrize("exists", [True, False], ids=["there", "not there yet"])
@pytest.mark.parametrize("suffix", COMPANIONS)
def test_the_stream_and_its_companions_are_refused_by_name(path: Path, suffix: str, exists: bool) -> None:
    companion = path.with_name(path.name + suffix)
    if exists:
        companion.write_bytes(CONTENT)
    else:
        path.unlink()
    for way in (companion, path.parent / ".." / "place" / companion.name):
        assert "choose another path" in refused(path, "--index", way)
        assert "choose another path" in refused(path, "--index", way, "--rebuild")


@pytest.mark.parametrize("suffix", ["", ".commit", ".producers", ".rescued-20261124T010203Z-17"])
def test_they_are_refused_under_another_name_too(path: Path, suffix: str) -> None:
    companion = path.with_name(path.name + suffix)
    companion.write_bytes(b"tailidx1 is how it begins, which makes it no index")
    hard = path.with_name("hard")
    os.link(companion, hard)
    linked = path.parent.parent / "linked"
    linked.symlink_to(path.parent)
    relative = os.path.relpath(companion)
    for way in (hard, linked / companion.name, relative, f"{path.parent}//{companion.name}"):
        assert "choose another path" in refused(path, "--index", way)


def test_a_stream_that_is_a_link_is_refused_by_its_own_name(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    assert "choose another path" in refused(link, "--index", path)
    assert "choose another path" in refused(link, "--index", f"{path}.commit")
    assert "choose another path" in refused(link, "--index", f"{link}.commit")


@pytest.mark.parametrize("rebuild", [(), ("--rebuild",)])
@pytest.mark.parametrize(
    "content", [b"a letter\n", bytes(64), b"tail", b"idx" * 100], ids=["text", "zeros", "tail", "noise"]
)
def test_a_file_that_is_no_index_is_refused_and_left_as_it_is(
    path: Path, content: bytes, rebuild: tuple[str, ...]
) -> None:
    notes = path.with_name("notes.txt")
    notes.write_bytes(content)
    assert "remove it if it was an index" in refused(path, "--index", notes, *rebuild)


def empty(file: Path) -> None:
    file.touch()


def torn_header(file: Path) -> None:
    file.write_bytes(b"tailidx1newline")


def older_version(file: Path) -> None:
    file.write_bytes(b"tailidx0" + bytes(100))


@pytest.mark.parametrize("make", [empty, torn_header, older_version])
def test_an_index_and_an_empty_file_are_used(path: Path, make: Callable[[Path], None]) -> None:
    elsewhere = path.with_name("elsewhere")
    make(elsewhere)
    content = elsewhere.read_bytes()
    with index(path, "--index", elsewhere) as daemon, Asker(daemon) as asker:
        assert asker.line("1") == "4"
        assert daemon.stop() == 0
    assert elsewhere.read_bytes().startswith(b"tailidx1newline")
    if content:
        assert path.with_name("elsewhere.old").read_bytes() == content


def test_no_copy_is_overwritten_and_their_number_is_bounded(path: Path) -> None:
    made = [path.with_name("stream.index.old" + (f".{number}" if number else "")) for number in range(COPIES)]
    contents: list[bytes] = []
    for number in range(COPIES + 2):
        with index(path, "--rebuild") as daemon, Asker(daemon) as asker:
            assert asker.line("1") == "4"
            if number:
                renamed = daemon.wait_log("index set aside")["renamed"]
                assert renamed == (str(made[number - 1]) if number <= COPIES else None)
            assert daemon.stop() == 0
        contents.append(path.with_name("stream.index").read_bytes())
    assert [copy.read_bytes() for copy in made] == contents[:COPIES]
    assert sorted(found.name for found in path.parent.iterdir()) == sorted(
        ["stream", "stream.index", *(copy.name for copy in made)]
    )


def test_a_copy_gets_no_name_that_belongs_to_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "x.old"
    elsewhere = tmp_path / "x"
    elsewhere.write_bytes(b"tailidx1 damaged")
    with index(path, "--index", elsewhere) as daemon:
        assert daemon.wait_log("index set aside")["renamed"] == f"{elsewhere}.old.1"
        assert daemon.stop() == 0
    assert not path.exists()


def test_an_index_that_was_moved_away_meanwhile_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(CONTENT * 1000)
    moved = path.with_name("moved")
    with index(path, "--interval-bytes", "64") as daemon, Asker(daemon) as asker:
        assert asker.count() == 2000
        path.with_name("stream.index").rename(moved)
        kept = moved.read_bytes()
        path.write_bytes(b"something else\n" * 1000)
        daemon.wait_log("index set aside")
        assert asker.count() == 1000
        assert daemon.stop() == 0
    assert moved.read_bytes() == kept
    assert path.with_name("stream.index").stat().st_size > 64


def test_the_index_itself_is_not_taken_for_the_stream(path: Path) -> None:
    path.unlink()
    with index(path) as daemon, Asker(daemon) as asker:
        os.link(path.with_name("stream.index"), path)
        assert "is the index itself" in daemon.wait_log("the file cannot be served")["error"]
        path.unlink()
        path.write_bytes(CONTENT)
        wait_until(lambda: asker.line("1") == "4", "the stream is taken up")
        assert daemon.stop() == 0


@pytest.mark.parametrize("what", ["an index that another process has", "a directory", "a file of somebody else"])
def test_what_takes_the_place_of_a_deleted_index_ends_no_running_indexer(path: Path, what: str) -> None:
    place, other = path.with_name("stream.index"), path.with_name("other")
    path.write_bytes(b"".join(b"%099d\n" % number for number in range(5000)))
    other.write_bytes(b"".join(b"other %d\n" % number for number in range(50_000)))
    with index(path) as running, contextlib.ExitStack() as stack:
        with Asker(running) as asker:
            assert asker.count() == 5000
        place.unlink()
        if what == "a directory":
            place.mkdir()
        elif what == "a file of somebody else":
            place.write_bytes(b"precious")
        else:
            stack.enter_context(index(path))
        other.replace(path)  # another stream: a new index is due
        assert running.wait_log("index set aside")
        with Asker(running) as asker:
            wait_until(lambda: asker.ask(count=True).get("count") == 50_000)
            assert asker.ask(number=3)["offset"] == 24
        assert running.process.poll() is None
    if what == "a file of somebody else":
        assert place.read_bytes() == b"precious"
