"""A start goes on where the disk bears the journal out; what consumers have seen it never takes back by itself."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import zlib
from typing import TYPE_CHECKING

import pytest

from collator.decision import Decision, RefusedError, decide
from tailsrv_formats.framing import FRAMINGS, make_framing
from tailsrv_formats.journal import Header, Journal, Record
from tests.support.collators import Producer, collate, mark, raw, wait_committed
from tests.support.http import health
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import Daemon

# --- the decision, without files

RECORDS = [Record(0, 10, 10, 0), Record(10, 20, 10, 1), Record(20, 30, 20, 2)]


def say(
    *held: bool, size: int = 30, seen: int | None = 30, sync: str = "always", same_boot: bool = True, torn: int = 0
) -> Decision:
    """The decision when FILE holds those of the records' bytes."""
    header = Header(b"i" * 16, b"B" * 16, "newline", sync)
    records = RECORDS if sync != "never" else [Record(r.start, r.end, 10, r.crc) for r in RECORDS]
    journal = Journal(header, records, [], torn)
    return decide(journal, size, seen, lambda record: held[record.crc] and size >= record.end, same_boot=same_boot)


def test_a_stream_in_order_is_continued_as_it_is() -> None:
    decision = say(True, True, True)
    assert (decision.end, decision.records, decision.lost) == (30, 3, 0)


@pytest.mark.parametrize("same_boot", [True, False])
def test_a_last_commit_that_did_not_reach_the_file_is_taken_back(same_boot: bool) -> None:
    for size in (20, 25, 30, 35):
        decision = say(True, True, False, size=size, seen=20, same_boot=same_boot)
        assert (decision.end, decision.records, decision.lost) == (20, 2, 0)


def test_what_a_mark_has_shown_is_not_taken_back_while_it_is_there() -> None:
    with pytest.raises(RefusedError, match="may have seen"):
        say(True, True, False, seen=30)
    with pytest.raises(RefusedError, match="may have seen"):
        say(True, True, True, size=50, seen=40)


def test_a_durable_record_that_the_file_contradicts_is_refused() -> None:
    with pytest.raises(RefusedError, match="may have seen"):
        say(True, False, True, seen=None)


def test_a_file_that_became_shorter_continues_at_its_last_verified_record_and_that_is_reported() -> None:
    decision = say(True, True, True, size=25)
    assert (decision.end, decision.records, decision.lost) == (20, 2, 10)
    decision = say(True, True, True, size=15)
    assert (decision.end, decision.records, decision.lost) == (10, 1, 20)


def test_a_file_that_verifies_no_record_is_another_file() -> None:
    with pytest.raises(RefusedError, match="another file"):
        say(False, False, False)
    with pytest.raises(RefusedError, match="begins at byte 10"):
        say(True, True, True, size=5)


def test_a_record_of_no_bytes_verifies_nothing() -> None:
    header = Header(b"i" * 16, b"B" * 16, "newline", "always")
    first, second, third = Record(0, 0, 0, 0), Record(0, 9, 0, 1), Record(9, 20, 9, 2)

    def hollow(record: Record) -> bool:
        return record.end == 0

    # The first commit of all may be the one that did not reach FILE; more than that can't be.
    assert decide(Journal(header, [first, second], []), 4, 0, hollow, same_boot=False).end == 0
    with pytest.raises(RefusedError, match="holds none"):
        decide(Journal(header, [first, second, third], []), 4, 9, hollow, same_boot=True)


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("sync", ["always", "never"])
def test_without_a_mark_only_a_stream_that_is_in_order_is_taken(sync: str, same_boot: bool) -> None:
    assert say(True, True, True, seen=None, sync=sync, same_boot=same_boot).end == 30
    for held, size, torn in (((True, True, True), 30, 7), ((True, True, True), 35, 0), ((True, True, False), 30, 0)):
        with pytest.raises(RefusedError, match="mark"):
            say(*held, size=size, seen=None, torn=torn, sync=sync, same_boot=same_boot)
        # With one, each of these is what a crash leaves.
        assert say(*held, size=size, seen=20, torn=torn, sync=sync, same_boot=same_boot).end in {20, 30}


def test_without_syncs_a_power_cut_may_cost_commits_and_a_kill_does_not() -> None:
    assert say(True, False, True, sync="never", same_boot=True).end == 30
    assert say(True, True, False, sync="never", same_boot=True, seen=20).end == 20
    decision = say(True, False, True, sync="never", same_boot=False)
    assert (decision.end, decision.lost) == (10, 20)


def test_without_syncs_a_mark_that_outran_the_journal_holds() -> None:
    decision = say(True, True, True, sync="never", same_boot=False, size=40, seen=35)
    assert (decision.end, decision.records) == (35, 3)


# --- real starts


def stream(tmp_path: Path, commits: int = 3, *options: str) -> Path:
    """A stream of a few commits by one named producer, whose collator was killed."""
    path = tmp_path / "stream"
    with collate(path, *options) as collator:
        producer = Producer(collator, "ada")
        assert producer.told() == (0, 0)
        for number in range(1, commits + 1):
            producer.send(b"message %d\n" % number)
            assert producer.told() == (10 * number, 10 * number)
        collator.kill()
    return path


def acked(collator: Daemon, name: str = "ada") -> tuple[int, int]:
    return Producer(collator, name).told()


def refused(path: Path, *options: str) -> str:
    """Start, which must fail with exit code 1 and one line; what it says."""
    with collate(path, *options, ready=False) as collator:
        assert collator.wait() == 1
        errors = [event for event in collator.events() if event["level"] == "error"]
        assert len(errors) == 1
        assert "at" not in errors[0] or errors[0].get("advice") is None
        return str(errors[0]["error"])


def test_a_kill_costs_nothing(tmp_path: Path) -> None:
    path = stream(tmp_path)
    with collate(path) as collator:
        assert collator.wait_log("recovered")["found"] == "in order"
        assert acked(collator) == (30, 30)
        assert mark(path) == 30


@pytest.mark.parametrize("junk", [b"half a mess", b"by hand\n", bytes(100_000)])
def test_bytes_beyond_the_journal_are_rescued(tmp_path: Path, junk: bytes) -> None:
    path = stream(tmp_path)
    with path.open("ab") as file:
        file.write(junk)
    with collate(path) as collator:
        found = collator.wait_log("recovered")
        assert (found["bytes"], found["rescued_bytes"], found["level"]) == (30, len(junk), "warning")
        with open(found["rescued"], "rb") as rescued:
            assert rescued.read() == junk
        assert found["rescued"].startswith(f"{path}.rescued-")
        assert found["rescued"].endswith("-30")
        assert path.stat().st_size == 30
        assert acked(collator) == (30, 30)


def test_a_last_commit_whose_bytes_are_wrong_is_taken_back_unless_it_was_shown(tmp_path: Path) -> None:
    path = stream(tmp_path)
    with path.open("r+b") as file:
        file.seek(25)
        file.write(b"\0\0")
    assert "--adopt" in refused(path)
    (tmp_path / "stream.commit").write_bytes(line(20) * 2)
    with collate(path) as collator:
        found = collator.wait_log("recovered")
        assert (found["bytes"], found["rescued_bytes"]) == (20, 10)
        assert acked(collator) == (20, 20)
        assert mark(path) == 20


def line(length: int) -> bytes:
    """A line of the commit mark."""
    digits = b"%020d" % length
    return b"%s %08x\n" % (digits, zlib.crc32(digits))


def test_a_truncated_file_goes_on_at_a_boundary_and_its_producers_send_again(tmp_path: Path) -> None:
    path = stream(tmp_path)
    os.truncate(path, 17)
    with collate(path) as collator:
        found = collator.wait_log("recovered")
        assert (found["bytes"], found["rescued_bytes"], found["lost_bytes"]) == (10, 7, 20)
        assert acked(collator) == (10, 10)
        assert mark(path) == 10


@pytest.mark.parametrize("state", [b"", b"garbage", line(30)[:-1] + b"x" + line(30)[1:]])
def test_an_unreadable_mark_is_written_again(tmp_path: Path, state: bytes) -> None:
    path = stream(tmp_path)
    (tmp_path / "stream.commit").write_bytes(state)
    with collate(path):
        assert mark(path) == 30
    (tmp_path / "stream.commit").unlink()
    with collate(path):
        assert mark(path) == 30


def test_a_mark_older_than_the_journal_is_moved_forward(tmp_path: Path) -> None:
    path = stream(tmp_path)
    (tmp_path / "stream.commit").write_bytes(line(10) + line(20))
    with collate(path):
        assert mark(path) == 30


@pytest.mark.parametrize("state", [None, b"", b"garbage", bytes(60)])
def test_a_lost_mark_and_a_damaged_last_record_are_refused_and_not_taken_for_a_crash(
    tmp_path: Path, state: bytes | None
) -> None:
    path = stream(tmp_path)
    journal, commit = tmp_path / "stream.producers", tmp_path / "stream.commit"
    whole, said = journal.read_bytes(), commit.read_bytes()
    content = bytearray(whole)
    content[len(whole.rstrip(b"\0")) - 20] ^= 1
    journal.write_bytes(content)
    commit.unlink()
    if state is not None:
        commit.write_bytes(state)
    assert "FILE.commit" in refused(path)
    assert path.read_bytes() == b"message 1\nmessage 2\nmessage 3\n"
    commit.write_bytes(said)
    assert "may have seen" in refused(path)  # the single fault, as ever
    journal.write_bytes(whole)
    with collate(path) as collator:
        assert acked(collator) == (30, 30)


def test_a_torn_journal_record_goes_back_by_that_commit(tmp_path: Path) -> None:
    path = stream(tmp_path)
    journal = tmp_path / "stream.producers"
    content = journal.read_bytes().rstrip(b"\0")
    journal.write_bytes(content[:-5] + bytes(4096))
    (tmp_path / "stream.commit").write_bytes(line(10) + line(20))
    with collate(path) as collator:
        assert acked(collator) == (20, 20)
        assert collator.wait_log("recovered")["rescued_bytes"] == 10


def test_a_journal_that_is_damaged_in_the_middle_stops_the_start_until_it_is_adopted(tmp_path: Path) -> None:
    path = stream(tmp_path)
    journal = tmp_path / "stream.producers"
    content = bytearray(journal.read_bytes())
    content[200] ^= 1
    journal.write_bytes(content)
    for _ in range(2):
        assert "--adopt" in refused(path)
    assert path.stat().st_size == 30
    with collate(path, "--adopt") as collator:
        assert acked(collator) == (0, 0)
        assert path.read_bytes() == b"message 1\nmessage 2\nmessage 3\n"
    with collate(path) as collator:
        assert collator.wait_log("recovered")["found"] == "in order"


@pytest.mark.parametrize("content", [b"", b"another file, which has as many bytes and more\n"])
def test_a_journal_of_another_file_stops_the_start(tmp_path: Path, content: bytes) -> None:
    path = stream(tmp_path)
    path.write_bytes(content)
    assert "--adopt" in refused(path)
    with collate(path, "--adopt"):
        assert path.read_bytes() == content
        assert mark(path) == len(content)


def test_another_framing_than_the_journals_stops_the_start(tmp_path: Path) -> None:
    path = stream(tmp_path)
    assert "--framing newline" in refused(path, "--framing", "nul")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("torn", [False, True])
def test_a_file_without_a_journal_is_adopted_with_its_end_made_whole(tmp_path: Path, framing: str, torn: bool) -> None:
    frames = make_framing(framing)
    source = random.Random(framing)
    size = 3000 if framing == "u16be" else 70_000
    whole = b"".join(frames.wrap(b"x" * source.randrange(size)) for _ in range(100))
    end = frames.wrap(b"y" * 700)[:-5] if torn else b""
    path = tmp_path / "stream"
    path.write_bytes(whole + end)
    with collate(path, "--framing", framing) as collator:
        found = collator.wait_log("recovered")
        if frames.terminator:
            whole += end + (frames.terminator if torn else b"")
        elif torn:
            with open(found["rescued"], "rb") as rescued:
                assert rescued.read() == end
        assert path.read_bytes() == whole
        assert mark(path) == len(whole)
        raw(collator, frames.wrap(b"next"))
        assert wait_committed(path, len(whole) + 5) == whole + frames.wrap(b"next")
        assert collator.stop() == 0


def test_a_file_that_is_not_in_this_framing_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"just some lines\nof text\n")
    said = refused(path, "--framing", "u32be")
    assert "byte 0" in said
    assert "--framing" in said
    assert path.read_bytes() == b"just some lines\nof text\n"


def test_a_symbolic_link_in_the_place_of_a_sidecar_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "stream"
    (tmp_path / "stream.producers").symlink_to(victim)
    refused(path)
    (tmp_path / "stream.producers").unlink()
    (tmp_path / "stream.commit").symlink_to(victim)
    refused(path)
    (tmp_path / "stream.commit").unlink()
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "nowhere")
    refused(path)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_compaction_that_a_crash_interrupted_leaves_no_file(tmp_path: Path) -> None:
    path = stream(tmp_path)
    (tmp_path / ".stream.producers.abcdefgh").write_bytes(b"half")
    with collate(path) as collator:
        assert acked(collator) == (30, 30)
        assert not (tmp_path / ".stream.producers.abcdefgh").exists()


def endless(tmp_path: Path) -> Path:
    """A file of empty messages whose adoption takes minutes."""
    path = tmp_path / "stream"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    return path


def test_a_long_recovery_reports_its_progress_and_ends_at_once_on_sigterm(tmp_path: Path) -> None:
    path = endless(tmp_path)
    with collate(path, "--framing", "u32be", "--metrics", "127.0.0.1:0", ready=False) as collator:

        def progress() -> int:
            status, body = health(collator)
            assert status == 503
            found = re.search(r"recovering .*: (\d+) of 8589934592 bytes", body)
            return int(found[1]) if found else -1

        wait_until(lambda: progress() > 1 << 20, "it has begun")
        seen = progress()
        wait_until(lambda: progress() > seen, "it goes on")
        assert collator.stop() == 0  # and not in some minutes
        assert "recovered" not in collator.log()
    assert path.stat().st_size == 1 << 33
    assert not (tmp_path / "stream.producers").exists()


def test_a_watchdog_is_fed_while_a_recovery_takes_long(tmp_path: Path) -> None:
    path = endless(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with collate(path, "--framing", "u32be", ready=False, environment=environment) as collator:
            for _ in range(5):
                assert systemd.recv(100) == b"WATCHDOG=1"
            assert collator.stop() == 0


def test_of_two_collators_that_start_at_once_one_runs_and_the_other_names_it(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path, ready=False) as one, collate(path, ready=False) as two:
        wait_until(lambda: (one.process.poll() is None) != (two.process.poll() is None), "one of them ends")
        winner, loser = (one, two) if one.process.poll() is None else (two, one)
        assert loser.wait() == 1
        assert f"process {winner.pid}" in loser.log()
        winner.wait_ready()
        raw(winner, b"fine\n")
        assert wait_committed(path, 5) == b"fine\n"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
@pytest.mark.parametrize("name", ["stream.producers", "stream.commit"])
def test_a_sidecar_that_is_no_regular_file_is_an_error_that_names_it(tmp_path: Path, name: str, kind: str) -> None:
    path = stream(tmp_path)
    (tmp_path / name).unlink()
    if kind == "fifo":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).mkdir()
    assert name in refused(path)


@pytest.mark.parametrize("sync", ["always", "never"])
def test_a_large_journal_is_compacted_while_messages_arrive(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    journal = tmp_path / "stream.producers"
    names = [f"{number:x<128}" for number in range(300)]
    with collate(path, "--sync", sync) as collator:
        producers = [Producer(collator, name) for name in names]
        for producer in producers:
            assert producer.told() == (0, 0)
        first, turn, largest = journal.stat().st_ino, 0, 0
        while journal.stat().st_ino == first:
            turn += 1
            for producer in producers:
                producer.send(b"x\n")
            for producer in producers:
                producer.until(2 * turn)
            largest = max(largest, journal.stat().st_size)
            assert largest < 2 << 20
        for producer in producers:
            producer.send(b"y\n")
        for producer in producers:
            producer.until(2 * turn + 2)
        assert journal.stat().st_size < largest
        collator.signal(signal.SIGKILL)
        collator.wait()
    with collate(path, "--sync", sync) as collator:
        for name in names[::30]:
            assert acked(collator, name)[0] == 2 * turn + 2
        assert collator.stop() == 0
    assert path.stat().st_size == 300 * (2 * turn + 2)
