"""Journal and mark are what their names mean, or are written again before anything more is acknowledged."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.collators import Producer, collate, mark
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL, MARK = "stream.producers", "stream.commit"


def take_away(path: Path, how: str) -> None:
    """Do to a file what operators and scripts do."""
    if how == "unlink":
        path.unlink()
    elif how == "move":
        path.rename(path.with_name(path.name + ".gone"))
    else:
        other = path.with_name(path.name + ".other")
        other.write_bytes(b"of somebody else")
        other.replace(path)


@pytest.mark.parametrize("how", ["unlink", "move", "replace"])
@pytest.mark.parametrize("names", [(JOURNAL,), (MARK,), (JOURNAL, MARK)])
@pytest.mark.parametrize("sync", ["always", "never"])
def test_a_sidecar_file_that_is_removed_is_written_again_at_once(
    tmp_path: Path, names: tuple[str, ...], how: str, sync: str
) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync) as collator:
        producer = Producer(collator, "ada")
        assert producer.told() == (0, 0)
        producer.send(b"one\n")
        assert producer.told() == (4, 4)
        for name in names:
            take_away(tmp_path / name, how)
        collator.wait_log("sidecar file rewritten", len(names))
        assert all((tmp_path / name).exists() for name in names)
        assert collator.wait_log("sidecar file missing")["level"] == "error"
        assert mark(path) == 4
        producer.send(b"two\n")
        assert producer.told() == (8, 8)
        assert mark(path) == 8
        collator.kill()
    with collate(path, "--sync", sync) as collator:
        assert collator.wait_log("recovered")["found"] == "in order"
        assert Producer(collator, "ada").told() == (8, 8)


@pytest.mark.parametrize("name", [JOURNAL, MARK])
def test_sidecar_files_that_are_removed_again_and_again_under_load_cost_no_acknowledgement(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "stream"
    stop = threading.Event()
    told = [0, 0]

    with collate(path) as collator:

        def produce(who: int) -> None:
            producer = Producer(collator, f"p{who}")
            assert producer.told() == (0, 0)
            while not stop.is_set():
                producer.send(b"x" * 99 + b"\n")
                told[who] = producer.told()[0]

        threads = [threading.Thread(target=produce, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 21):
            (tmp_path / name).unlink()
            wait_until((tmp_path / name).exists, "it is there again")
            before = sum(told)
            wait_until(lambda before=before: sum(told) > before, "it goes on")  # type: ignore[misc]  # mypy can't infer defaults of a lambda
            collator.wait_log("sidecar file rewritten", number)
        stop.set()
        for thread in threads:
            thread.join()
        collator.kill()
    with collate(path) as collator:
        for who in range(2):
            assert Producer(collator, f"p{who}").told()[0] == told[who]
    assert path.stat().st_size == sum(told)


def test_a_compaction_is_not_reported_as_a_missing_journal(tmp_path: Path) -> None:
    path, journal = tmp_path / "stream", tmp_path / JOURNAL
    with collate(path, "--sync", "never") as collator:
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        first = journal.stat().st_ino
        told = 0
        while journal.stat().st_ino == first:
            producer.send(b"x\n")
            told += 2
            assert producer.told()[0] == told
        journal.unlink()  # the new one is watched as well
        collator.wait_log("sidecar file rewritten")
        assert sum(event["event"] == "sidecar file missing" for event in collator.events()) == 1
        assert os.path.exists(journal)
        assert collator.stop() == 0
    with collate(path) as collator:
        assert Producer(collator, "a").told()[0] == told
