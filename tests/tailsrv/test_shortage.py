"""While descriptors are short, the broadcaster uses its reserve, or retries until it succeeds."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

from tailsrv_runtime.commit_mark import MarkWriter
from tests.support.connections import ask
from tests.support.daemons import Daemon
from tests.support.http import http_get, scrape
from tests.support.processes import children
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, content, follow, serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemons import Daemon

FEW = 100
ENOUGH = 4096


def limited() -> None:
    """Called in the daemon before it starts: limit its descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))


def allow(pid: int, count: int) -> None:
    """Set how many descriptors a running process may have. Those that are open stay open."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, ENOUGH))


@contextlib.contextmanager
def crowd(daemon: Daemon, paused: int = 1) -> Iterator[list[socket.socket]]:
    """More clients than descriptors: eight have sent a header and are yielded, the others have not."""
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


def test_while_peers_have_all_descriptors_clients_are_served_and_new_ones_when_some_disconnect(
    tmp_path: Path,
) -> None:
    path = tmp_path / "stream"
    whole = content(4 * MIB)
    options = ("--header-timeout", "600", "--metrics", "127.0.0.1:0")
    with serve(path, *options, preexec_fn=limited) as daemon:
        with crowd(daemon) as clients:
            assert "does not exist yet" in http_get(daemon, "/healthz")
            path.write_bytes(whole)
            for client in clients:  # more than the main loop sends at once: a replay
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


def test_a_file_or_mark_that_appears_without_a_free_descriptor_is_opened_when_there_is_one(tmp_path: Path) -> None:
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


def test_workers_without_descriptors_serve_their_clients_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
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


def test_a_supervisor_without_descriptors_starts_a_worker_when_it_has_some(tmp_path: Path) -> None:
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
        assert daemon.stop() == 0  # so its signals are not blocked


def test_a_worker_that_cannot_start_in_a_shortage_does_not_end_the_others(tmp_path: Path) -> None:
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


def test_a_worker_that_cannot_start_because_of_the_mark_does_not_end_the_others(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"content")
    with serve(path, "--workers", "2") as daemon:
        first, second = children(daemon.pid)
        os.mkdir(f"{path}.commit")  # a worker that serves keeps its end; no worker can start with such a mark
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


def test_a_start_without_descriptors_fails_with_one_line_that_says_what_to_do(tmp_path: Path) -> None:
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


def test_the_main_loop_serves_replays_when_no_thread_can_be_started(tmp_path: Path) -> None:
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
        wait_until(lambda: daemon.descriptors() <= held)  # the descriptors of a thread that could not start are closed
        assert daemon.stop() == 0
