"""What operators and their machines do to a daemon meanwhile: scrape it, probe it, ask it, and neglect its log."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import socket
import threading
from typing import TYPE_CHECKING, Self

from tests.support.sockets import read_to_end
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemons import Daemon

SCRAPE_SECONDS = 0.2
PROBE_SECONDS = 0.1
DESCRIBE_SECONDS = 1.0
BURST_SECONDS = (0.5, 3.0)
"""For how long the log is read, and then left alone."""

LOG_BYTES = 4096
"""Room in the pipe for the log, the least that there is: a few dozen lines fill it."""


class Harsh:
    """Does all of it from `begin` to `end`; what went wrong is in `errors`."""

    def __init__(self, daemon: Daemon) -> None:
        self.errors: list[str] = []
        self.counts = dict.fromkeys(("scrape", "probe", "SIGUSR1", "burst of reading the log"), 0)
        self._daemon = daemon
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        host, _, port = daemon.wait_log("serving metrics")["addresses"][0].rpartition(":")
        self._address = (host, int(port))
        assert daemon.process.stderr is not None
        fcntl.fcntl(daemon.process.stderr, fcntl.F_SETPIPE_SZ, LOG_BYTES)

    def __enter__(self) -> Self:
        self._over.clear()
        activities = [
            ("scrape", SCRAPE_SECONDS, self._scrape),
            ("probe", PROBE_SECONDS, self._probe),
            ("SIGUSR1", DESCRIBE_SECONDS, lambda: self._daemon.signal(signal.SIGUSR1)),
            ("burst of reading the log", BURST_SECONDS[1], self._read_log),
        ]
        self._threads = [threading.Thread(target=self._repeat, args=activity) for activity in activities]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        while not self._over.wait(seconds):
            try:
                act()
            except (OSError, AssertionError) as error:
                self.errors.append(f"{name}: {error!r}")
                return
            self.counts[name] += 1

    def _ask(self, request: str) -> bytes:
        with socket.create_connection(self._address, PATIENCE) as http:
            http.sendall(f"{request} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
            return read_to_end(http)

    def _scrape(self) -> None:
        answer = self._ask("GET /metrics")
        assert answer.startswith(b"HTTP/1.1 200"), answer[:100]
        assert b"\ntailsrv_clients " in answer

    def _probe(self) -> None:
        answer = self._ask("HEAD /healthz")
        assert answer.startswith(b"HTTP/1.1 200"), answer[:100]
        assert answer.endswith(b"\r\n\r\n"), "a body in answer to HEAD"

    def _read_log(self) -> None:
        for _ in range(int(BURST_SECONDS[0] / 0.01)):
            self._daemon.log()
            if self._over.wait(0.01):
                return


def torn_lines(log: str) -> list[str]:
    """Lines that are not whole: what can't be written is left out by the line."""
    torn = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            json.loads(line)
            continue
        torn.append(line)
    return torn
