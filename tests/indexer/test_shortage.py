"""Everything that an indexer may have to open, while there are no descriptors: it pauses, and resumes by itself."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from indexer.verifier import verify
from tests.support.http import health
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines
from tests.support.waits import wait_until

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.support.daemons import Daemon

SMALL = Truth("newline", lines(20000))
OTHER = Truth("newline", lines(3000, 7, 33))
LINE = b"%099d\n" % 7
LINES = 400_000
"""So many of these are 40 MB: more than the loop reads by itself where there can be workers."""

LIMIT = 100


def count(daemon: Daemon, event: str) -> int:
    return len([each for each in daemon.events() if each["event"] == event])


def crowd(daemon: Daemon) -> list[socket.socket]:
    """Ordinary peers, as many as it takes."""
    peers = [daemon.connect() for _ in range(LIMIT)]
    daemon.wait_log("accepting paused")
    return peers


def limit(daemon: Daemon, descriptors: int) -> None:
    """Let it have no descriptor above this number from now on; those that it has stay open."""
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (descriptors, LIMIT))


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(LINE * LINES)


@pytest.mark.parametrize("reserve", [True, False], ids=["peers have all", "nothing is left at all"])
def test_whatever_comes_while_there_are_no_descriptors_is_dealt_with_and_each_pause_is_logged_once(
    tmp_path: Path, reserve: bool
) -> None:
    """There is no descriptor; then the file appears, grows by 40 MB, is replaced, and the index is cut.

    Where peers have them, the reserve that they can't take is enough for all that. Where not even that can be used, as
    when the whole system has run out, each activity pauses until there is room again.
    """
    path = tmp_path / "stream"
    prefix = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
    with index(path, "--metrics", "127.0.0.1:0", prefix=prefix) as daemon, Asker(daemon) as asker:
        assert asker.line("0") == "0"
        peers = crowd(daemon) if reserve else []
        if reserve:
            assert health(daemon)[0] == 503
        else:
            limit(daemon, 3)

        path.write_bytes(SMALL.content)
        if not reserve:
            daemon.wait_log("opening the file paused")
            assert asker.line("5").startswith("error: ")
            limit(daemon, LIMIT)
        wait_until(lambda: asker.ask(count=True).get("count") == SMALL.count, "the file is taken up")
        if not reserve:
            daemon.wait_log("opening the file resumed")
            limit(daemon, 3)
        else:
            wait_until(lambda: health(daemon)[0] == 200, "it is well")

        grow(path)
        messages = SMALL.count + LINES
        wait_until(lambda: asker.ask(count=True).get("count") == messages, "what came at once is read")
        daemon.wait_log("indexed" if reserve else "builder processes not started")

        os.truncate(path.with_name("stream.index"), 1000)
        wait_until(lambda: asker.line("15000") == str(SMALL.offsets[15000]), "it is repaired")
        wait_until(lambda: asker.ask(count=True).get("count") == messages, "all is known again")

        other = path.with_name("other")
        other.write_bytes(OTHER.content)
        other.rename(path)
        if not reserve:
            daemon.wait_log("watching the file paused")
            assert asker.line("15000") == str(SMALL.offsets[15000]), "what it held is answered"
            limit(daemon, LIMIT)
        wait_until(lambda: asker.ask(count=True).get("count") == OTHER.count, "the new file is taken up")
        asker.assert_answers(OTHER, range(0, OTHER.count + 1, 101))

        for peer in peers:
            peer.close()
        with Asker(daemon) as late:
            late.assert_answers(OTHER, range(0, OTHER.count + 1, 101))
        assert health(daemon)[0] == 200
        for activity in ("opening the file", "watching the file"):
            assert count(daemon, f"{activity} paused") == count(daemon, f"{activity} resumed") == (not reserve)
        assert count(daemon, "builder processes not started") <= 1
        assert count(daemon, "unexpected error") == 0
        assert daemon.stop() == 0
    assert verify(str(path)) == []


def test_an_index_is_set_aside_without_a_descriptor_to_spare(tmp_path: Path) -> None:
    """Where no new one can be opened, the old one's content is dropped instead, and nothing ends."""
    path = tmp_path / "stream"
    path.write_bytes(SMALL.content)
    with index(path, prefix=("prlimit", f"--nofile={LIMIT}:{LIMIT}")) as daemon, Asker(daemon) as asker:
        asker.assert_answers(SMALL, range(0, SMALL.count + 1, 501))
        limit(daemon, 3)
        path.write_bytes(OTHER.content)
        assert daemon.wait_log("index set aside")["renamed"] is None
        wait_until(lambda: asker.ask(count=True).get("count") == OTHER.count, "the new content is indexed")
        asker.assert_answers(OTHER, range(0, OTHER.count + 1, 101))
        limit(daemon, LIMIT)
        assert daemon.stop() == 0
    assert verify(str(path)) == []
    assert sorted(found.name for found in tmp_path.iterdir()) == ["stream", "stream.index"]


@pytest.mark.needs("strace")
@pytest.mark.parametrize("error", ["EACCES", "EROFS", "EIO"])
def test_an_index_that_cannot_be_renamed_any_more_is_emptied(tmp_path: Path, error: str) -> None:
    path = tmp_path / "stream"
    path.write_bytes(SMALL.content)
    words = ("strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", "/dev/null")
    prefix = (*words, "-e", "trace=rename", "-e", f"inject=rename:error={error}")
    with index(path, prefix=prefix) as daemon, Asker(daemon) as asker:
        asker.assert_answers(SMALL, range(0, SMALL.count + 1, 501))
        path.write_bytes(OTHER.content)
        assert daemon.wait_log("index set aside")["renamed"] is None
        wait_until(lambda: asker.ask(count=True).get("count") == OTHER.count, "the new content is indexed")
        asker.assert_answers(OTHER, range(0, OTHER.count + 1, 101))
        assert daemon.stop() == 0
    assert verify(str(path)) == []
    with index(path, "--rebuild", prefix=prefix, ready=False) as daemon:
        assert daemon.wait() == 1
        assert "cannot rename" in daemon.log()
