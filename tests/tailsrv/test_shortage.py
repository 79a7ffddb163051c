"""Whatever a broadcaster has to open while descriptors are short, it opens from its reserve, or later by itself."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

from tailsrv_runtime.commit_mark import MarkWriter
from tests.support.http import http_get, scrape
from tests.support.processes import children
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, ask, content, follow, serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemons import Daemon

FEW = 100
ENOUGH = 4096


def limited() -> None:
    """In the daemon, before it starts: few descriptors, of which there may be more later."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))


def allow(pid: int, count: int) -> None:
    """Set how many descriptors a process that runs may have. Those that it has stay."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, ENOUGH))


@contextlib.contextmanager
def crowd(daemon: Daemon, paused: int = 1) -> Iterator[list[socket.socket]]:
    """Ordinary peers, as many as there are descriptors and more: some have asked for everything, others for nothing."""
    with contextlib.ExitStack() as stack:
        asked = [stack.enter_context(ask(daemon, b"0\n")) for _ in range(8)]
        for _ in range(paused * FEW + 50):
            stack.enter_context(daemon.connect())
        daemon.wait_log("accepting paused", paused)
        yield asked


def logged(daemon: Daemon, *events: str) -> list[int]:
    """How often each of these events has been logged."""
    counts = Counter(str(entry["event"]) for entry in daemon.events())
    return [counts[event] for event in events]


def test_with_a_table_full_of_peers_everything_goes_on_and_new_peers_are_served_when_some_have_left(
    tmp_path: Path,
) -> None:
    path = tmp_path / "stream"
    whole = content(4 * MIB)
    options = ("--header-timeout", "600", "--metrics", "127.0.0.1:0")
    with serve(path, *options, preexec_fn=limited) as daemon:
        with crowd(daemon) as clients:
            assert "does not exist yet" in http_get(daemon, "/healthz")
            path.write_bytes(whole)
            for client in clients:  # all of it at once: more than the main loop sends itself, a replay
                assert read_exactly(client, len(whole)) == whole
            mark = MarkWriter(f"{path}.commit", len(whole))
            append(path, b"a" * 10)
            mark.move(len(whole) + 5)
            assert [read_exactly(client, 5) for client in clients] == [b"aaaaa"] * len(clients)
            mark.close()
            MarkWriter(f"{path}.new", len(whole) + 9).close()
            os.rename(f"{path}.new", f"{path}.commit")
            assert [read_exactly(client, 4) for client in clients] == [b"aaaa"] * len(clients)
            daemon.signal(signal.SIGUSR1)
            daemon.wait_log("client", 60)
            assert http_get(daemon, "/healthz").startswith("HTTP/1.1 200")
            assert scrape(daemon)["tailsrv_clients"] > 60
        with ask(daemon, b"0 now\n") as late:
            assert read_to_end(late) == whole + b"a" * 9
        with crowd(daemon, paused=0) as clients:
            path.unlink()
            for client in clients:
                assert read_to_end(client) == whole + b"a" * 9
        assert daemon.wait() == 0
        assert logged(daemon, "failed", "unexpected error") == [0, 0]


def test_without_a_single_descriptor_what_appears_is_opened_once_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    whole = content(2 * MIB)
    with serve(path, "--metrics", "127.0.0.1:0") as daemon, ask(daemon, b"0\n") as client:
        scrape(daemon)
        wait_until(lambda: scrape(daemon)["tailsrv_clients"] == 1)
        allow(daemon.pid, 3)
        path.write_bytes(whole)
        paused = daemon.wait_log("opening the file paused")
        assert (paused["file"], paused["advice"]) == (str(path), "raise LimitNOFILE= (ulimit -n)")
        allow(daemon.pid, ENOUGH)
        assert read_exactly(client, len(whole)) == whole
        daemon.wait_log("opening the file resumed")

        allow(daemon.pid, 3)
        mark = MarkWriter(f"{path}.commit", len(whole))
        append(path, b"0123456789")
        daemon.wait_log("opening the commit mark paused")
        append(path, b"uncommitted")
        mark.move(len(whole) + 10)
        allow(daemon.pid, ENOUGH)
        assert read_exactly(client, 10) == b"0123456789"
        daemon.wait_log("opening the commit mark resumed")

        allow(daemon.pid, 3)
        mark.close()
        MarkWriter(f"{path}.new", len(whole) + 12).close()
        os.rename(f"{path}.new", f"{path}.commit")
        daemon.wait_log("opening the commit mark paused", 2)
        allow(daemon.pid, ENOUGH)
        assert read_exactly(client, 2) == b"un"
        wait_until(lambda: http_get(daemon, "/healthz").startswith("HTTP/1.1 200"))

        allow(daemon.pid, 3)
        path.unlink()
        assert read_to_end(client) == b""
        assert daemon.wait() == 0
        events = ["opening the file paused", "opening the file resumed", "opening the commit mark paused"]
        assert logged(daemon, *events) == [1, 1, 2]


def test_workers_with_full_tables_go_on_and_one_that_is_killed_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    whole = content(2 * MIB)
    options = ("--workers", "2", "--header-timeout", "600", "--metrics", "127.0.0.1:0")
    with serve(path, *options, preexec_fn=limited) as daemon:
        with crowd(daemon, paused=2) as clients:
            path.write_bytes(whole)
            for client in clients:
                assert read_exactly(client, len(whole)) == whole
            mark = MarkWriter(f"{path}.commit", len(whole))
            append(path, b"abc")
            mark.move(len(whole) + 3)
            assert [read_exactly(client, 3) for client in clients] == [b"abc"] * len(clients)
            mark.close()
            killed = children(daemon.pid)[0]
            os.kill(killed, signal.SIGKILL)
            daemon.wait_log("worker died")
            wait_until(lambda: len(set(children(daemon.pid)) - {killed}) == 2, "it is back")
            assert scrape(daemon)["tailsrv_workers"] == 2
            assert http_get(daemon, "/healthz").startswith("HTTP/1.1 200")
            daemon.signal(signal.SIGUSR1)
            daemon.wait_log("client")
        with ask(daemon, b"0 now\n") as late:
            assert read_to_end(late) == whole + b"abc"
        assert daemon.stop() == 0
        assert logged(daemon, "failed", "unexpected error") == [0, 0]


def test_a_supervisor_without_descriptors_starts_a_worker_when_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"content")
    with serve(path, "--workers", "2") as daemon:
        allow(daemon.pid, 3)
        before = children(daemon.pid)
        os.kill(before[0], signal.SIGKILL)
        daemon.wait_log("starting a worker paused")
        assert children(daemon.pid) == [before[1]]
        allow(daemon.pid, ENOUGH)
        wait_until(lambda: len(children(daemon.pid)) == 2)
        for _ in range(10):
            with ask(daemon, b"0 now\n") as client:
                assert read_to_end(client) == b"content"
        daemon.wait_log("starting a worker resumed")
        assert logged(daemon, "starting a worker paused") == [1]
        assert daemon.stop() == 0  # its signals are not blocked


def test_a_worker_that_is_started_again_in_a_shortage_takes_nobody_with_it(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"content")
    with serve(path, "--workers", "2") as daemon:
        first, second = children(daemon.pid)
        with contextlib.ExitStack() as stack:
            served = [stack.enter_context(ask(daemon, b"0\n")) for _ in range(20)]
            for client in served:
                assert read_exactly(client, 7) == b"content"
            allow(daemon.pid, 16)  # enough to fork, and too few for what a worker needs
            os.kill(first, signal.SIGKILL)
            error = daemon.wait_log("worker failed")["error"]
            assert "raise " in error
            assert second in children(daemon.pid)
            allow(daemon.pid, ENOUGH)
            append(path, b"more")
            rest = [_rest(client) for client in served]
            assert Counter(rest).keys() == {b"more", None}
        daemon.wait_log("worker died", 2)
        wait_until(lambda: len(children(daemon.pid)) == 2)
        assert second in children(daemon.pid)
        assert daemon.stop() == 0


def test_a_worker_that_cannot_open_the_file_any_more_takes_nobody_with_it(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"content")
    with serve(path, "--workers", "2") as daemon:
        first, second = children(daemon.pid)
        os.mkdir(f"{path}.commit")  # those that serve go on with what they have shown; none can start like this
        daemon.wait_log("commit mark unusable")
        os.kill(first, signal.SIGKILL)
        assert "cannot use" in daemon.wait_log("worker failed")["error"]
        assert second in children(daemon.pid)
        os.rmdir(f"{path}.commit")
        wait_until(lambda: len(children(daemon.pid)) == 2)
        assert second in children(daemon.pid)
        assert daemon.stop() == 0


def _rest(client: socket.socket) -> bytes | None:
    """The four bytes that come next; None when the connection was reset."""
    try:
        return read_exactly(client, 4)
    except ConnectionResetError:
        return None


def test_a_start_without_descriptors_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with serve(tmp_path / "stream", prefix=("prlimit", "--nofile=10:10"), ready=False) as daemon:
        assert daemon.wait() == 1
        (failed,) = daemon.events()
        assert "Too many open files" in failed["error"]
        assert failed["advice"] == "raise LimitNOFILE= (ulimit -n)"


NO_THREADS = """
import runpy, sys, threading
sys.argv = sys.argv[3:]
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
runpy.run_module("tailsrv", run_name="__main__")
"""


def test_without_a_thread_to_be_had_replays_are_sent_by_the_main_loop(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(content(8 * MIB))
    with (
        serve(path, prefix=(sys.executable, "-c", NO_THREADS)) as daemon,
        follow(daemon, path) as live,
        ask(daemon, b"0 %d\n" % (8 * MIB)) as far,
    ):
        append(path, b"live")
        assert read_exactly(live, 4) == b"live"
        assert read_to_end(far) == path.read_bytes()[: 8 * MIB]
        held = daemon.descriptors()
        with ask(daemon, b"0 now\n") as other:
            assert len(read_to_end(other)) == 8 * MIB + 4
        wait_until(lambda: daemon.descriptors() <= held)  # what a thread would have needed is given back
        assert daemon.stop() == 0
