"""The raw port: whole messages of many producers, each in its order, and nothing else."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from tailsrv_formats.framing import FRAMINGS, make_framing
from tests.support.collators import collate, messages, raw, wait_committed
from tests.support.sockets import reset

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import Daemon

SYNCS = ("always", "never", "interval:5")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("sync", ["always", "never"])
def test_every_message_of_every_producer_is_stored_whole_and_in_order(tmp_path: Path, framing: str, sync: str) -> None:
    frames = make_framing(framing)
    source = random.Random(framing + sync)
    sizes = (0, 1, 100, 5000, 60_000) if framing == "u16be" else (0, 1, 100, 20_000, 300_000)
    sent = {who: [b"%d.%d." % (who, n) + b"x" * source.choice(sizes) for n in range(60)] for who in range(8)}

    def produce(who: int, port: Daemon) -> None:
        data = b"".join(map(frames.wrap, sent[who]))
        cut = (1, 700, 65_536)[who % 3]
        with port.connect() as sock:
            for start in range(0, min(len(data), 3000), cut):
                sock.sendall(data[start : min(start + cut, 3000)])
            sock.sendall(data[min(len(data), 3000) :])

    path = tmp_path / "stream"
    with collate(path, "--framing", framing, "--sync", sync) as collator:
        threads = [threading.Thread(target=produce, args=(who, collator)) for who in sent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_committed(path, sum(len(frames.wrap(message)) for many in sent.values() for message in many))
        assert collator.stop() == 0
    found = messages(path, framing)
    assert len(found) == 8 * 60
    for who, mine in sent.items():
        assert [message for message in found if message.startswith(b"%d." % who)] == mine


@pytest.mark.parametrize(("framing", "last"), [("newline", b"last\n"), ("nul", b"last\0"), ("u32be", b"")])
def test_a_clean_end_completes_the_last_line_and_drops_an_incomplete_prefixed_message(
    tmp_path: Path, framing: str, last: bytes
) -> None:
    frames = make_framing(framing)
    path = tmp_path / "stream"
    with collate(path, "--framing", framing) as collator:
        raw(collator, frames.wrap(b"first") + (b"last" if last else b"\0\0\0\x05last"))
        if last:
            collator.wait_log("last message completed")
        else:
            assert collator.wait_log("incomplete message dropped")["reason"] == "unfinished"
        assert collator.stop() == 0
    assert path.read_bytes() == frames.wrap(b"first") + last


def test_a_reset_drops_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        sock = collator.connect()
        sock.sendall(b"whole\nbroken")
        wait_committed(path, 6)
        reset(sock)
        assert collator.wait_log("incomplete message dropped")["reason"] == "reset"
        assert collator.stop() == 0
    assert path.read_bytes() == b"whole\n"


@pytest.mark.parametrize("framing", ["newline", "u32be", "varint"])
def test_a_message_that_is_too_long_ends_its_own_connection_alone(tmp_path: Path, framing: str) -> None:
    frames = make_framing(framing)
    path = tmp_path / "stream"
    with collate(path, "--framing", framing, "--max-message-bytes", "1000") as collator:
        with collator.connect() as other, collator.connect() as sock:
            other.sendall(frames.wrap(b"other")[:3])
            sock.sendall(frames.wrap(b"good") + frames.wrap(b"x" * 2000) + frames.wrap(b"behind"))
            collator.wait_log("producer disconnected")
            assert not sock.recv(1) if framing == "u32be" else True
            other.sendall(frames.wrap(b"other")[3:])
            wait_committed(path, len(frames.wrap(b"good") + frames.wrap(b"other")))
        assert collator.stop() == 0
    assert sorted(messages(path, framing)) == [b"good", b"other"]


def test_a_line_appended_by_hand_while_it_runs_is_rescued_and_nothing_else_moves(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"one\n")
        wait_committed(path, 4)
        with path.open("ab", buffering=0) as file:
            file.write(b"by hand\n")
        raw(collator, b"two\n")
        assert wait_committed(path, 8) == b"one\ntwo\n"
        found = collator.wait_log("foreign bytes rescued")
        assert (found["offset"], found["rescued_bytes"]) == (4, 8)
        with open(found["rescued"], "rb") as rescued:
            assert rescued.read() == b"by hand\n"
        assert collator.stop() == 0


def test_a_file_truncated_while_it_runs_stops_it(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"one\n")
        wait_committed(path, 4)
        path.write_bytes(b"")
        raw(collator, b"two\n")
        assert collator.wait() == 1
        assert "truncated" in collator.events()[-1]["error"]
