"""The raw port: whole messages of many producers, each in its order, and nothing else."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tailsrv_formats.framing import FRAMINGS, make_framing
from tests.support.collators import collate, messages, raw, wait_committed
from tests.support.daemons import Daemon
from tests.support.http import health, http_get
from tests.support.sockets import reset
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SYNCS = ("always", "never", "interval:5")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("sync", ["always", "never"])
def test_every_message_of_every_producer_stands_whole_and_in_order(tmp_path: Path, framing: str, sync: str) -> None:
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


@pytest.mark.parametrize("sync", SYNCS)
def test_what_was_sent_before_sigterm_is_committed(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync) as collator:
        socks = [collator.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(b"hello\n")
        wait_committed(path, 120)
        collator.signal(signal.SIGSTOP)
        for sock in socks:
            sock.sendall(b"x" * 299_999 + b"\nincomplete")
        collator.signal(signal.SIGTERM)
        collator.signal(signal.SIGCONT)
        assert collator.wait() == 0
        for sock in socks:
            sock.close()
    assert path.stat().st_size == 120 + 20 * 300_000
    assert wait_committed(path, 120 + 20 * 300_000)


def test_file_beside_files_and_permissions(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"one\n")
        wait_committed(path, 4)
        for name in ("stream", "stream.commit", "stream.producers"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
        assert collator.stop() == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["stream", "stream.commit", "stream.producers"]


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as first, collate(path, ready=False) as second:
        assert second.wait() == 1
        assert f"process {first.pid}" in second.events()[-1]["error"]


def test_a_moved_file_ends_the_collator_cleanly_and_a_deleted_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"one\n")
        wait_committed(path, 4)
        path.rename(tmp_path / "moved")
        assert collator.wait() == 0
        assert collator.wait_log("stream moved")
    path = tmp_path / "other"
    with collate(path) as collator:
        path.unlink()
        assert collator.wait() == 1
        assert "was deleted" in collator.events()[-1]["error"]


def test_a_line_appended_by_hand_while_it_runs_is_set_aside_and_nothing_else_moves(tmp_path: Path) -> None:
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


def test_sockets_that_are_handed_over_are_lanes_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    script = (
        "import os, socket, sys\n"
        "socks = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]\n"
        "fds = [os.dup(sock.fileno()) for sock in socks]\n"
        "[sock.close() for sock in socks]\n"
        "saved = [os.dup2(fd, 20 + index) for index, fd in enumerate(fds)]\n"
        "ready = sys.argv[-1]; os.dup2(int(ready), 30, inheritable=True)\n"
        "[os.dup2(20 + index, 3 + index) for index in range(2)]\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='ack:lines')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'collator', sys.argv[4], '--ready-fd', '30'])\n"
    )
    launcher = tmp_path / "handover.py"
    launcher.write_text(script)
    with Daemon("tailsrv-collate", path, prefix=(sys.executable, str(launcher))) as collator:
        assert len(collator.addresses) == 2
        raw(collator, b"one\n")
        wait_committed(path, 4)
        with collator.connect(1) as sock:
            sock.sendall(b"\n")
            assert sock.recv(4) == b"0 0\n"
        assert collator.stop() == 0


def test_metrics_tell_what_was_committed_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path, "--metrics", "127.0.0.1:0") as collator:
        raw(collator, b"one\ntwo\nthree")
        wait_committed(path, 14)
        sock = collator.connect()
        sock.sendall(b"half")
        reset(sock)
        collator.wait_log("incomplete message dropped")
        text = http_get(collator, "/metrics")
        for expected in (
            "tailsrv_collate_messages_total 3.0",
            "tailsrv_collate_bytes_total 14.0",
            'tailsrv_collate_dropped_total{lane="raw",reason="reset"} 1.0',
            'tailsrv_collate_completed_total{lane="raw"} 1.0',
            'tailsrv_collate_accepted_total{lane="raw"} 2.0',
            "tailsrv_collate_commit_bytes_bucket",
            "tailsrv_collate_commit_seconds_count",
            "tailsrv_collate_buffered_bytes",
            "tailsrv_collate_last_commit_seconds",
        ):
            assert expected in text
        assert health(collator) == (200, "ok\n")
        assert collator.stop() == 0


def test_memory_and_start(tmp_path: Path) -> None:
    with collate(tmp_path / "stream") as collator:
        assert collator.memory() < 32 << 20


@pytest.mark.parametrize("sync", SYNCS)
def test_idle_means_idle(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync) as collator, collator.connect() as sock:
        sock.sendall(b"one\n")
        wait_committed(path, 4)
        before, since = -1, 0.0

        def quiet() -> bool:
            nonlocal before, since
            last, before = before, int(collator.status("voluntary_ctxt_switches"))
            since = since if last == before else time.monotonic()
            return time.monotonic() - since > 0.5

        wait_until(quiet, "the last sync is over")
        sock.settimeout(2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert int(collator.status("voluntary_ctxt_switches")) == before
