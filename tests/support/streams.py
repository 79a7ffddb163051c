"""A stream with its daemons, and the commands of the clients, as real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

from tailsrv_client.spool import Spool
from tailsrv_formats.framing import make_framing
from tests.support.daemons import Daemon
from tests.support.waits import PATIENCE, wait_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tailsrv_client import Producer

CAT = [sys.executable, "-m", "tailsrv_client.cat"]
PUT = [sys.executable, "-m", "tailsrv_client.put"]


class StreamUnderTest:
    """FILE with a collator, a broadcaster and an indexer, each started when it is first asked for."""

    def __init__(self, path: Path, framing: str = "newline") -> None:
        self.path = path
        self.framing = framing
        self._stack = contextlib.ExitStack()
        self._daemons: dict[str, Daemon] = {}
        self._addresses: dict[str, list[str]] = {}

    def daemon(self, command: str, *options: str) -> Daemon:
        """The running daemon; started where it was before, if it was."""
        if command not in self._daemons:
            at = self._addresses.get(command)
            listen = {"tailsrv-collate": ["--listen", "--ack-listen"]}.get(command, ["--listen"])
            arguments = [
                word for number, option in enumerate(listen) for word in (option, at[number] if at else "127.0.0.1:0")
            ]
            if command != "tailsrv":
                arguments += ["--framing", self.framing]
            if command == "tailsrv-collate":
                arguments += ["--sync", "never"]
            daemon = self._stack.enter_context(Daemon(command, self.path, *arguments, *options))
            self._daemons[command] = daemon
            self._addresses[command] = daemon.addresses
        return self._daemons[command]

    def listen_at(self, command: str, addresses: list[str]) -> None:
        """Where a daemon that has not been started yet is going to listen."""
        self._addresses[command] = addresses

    def kill(self, command: str, signum: int = signal.SIGKILL) -> None:
        """End the daemon; it is started again at the same address when it is next asked for."""
        daemon = self._daemons.pop(command)
        daemon.signal(signum)
        daemon.wait()

    @property
    def running(self) -> set[str]:
        """The daemons that have been started and not killed."""
        return set(self._daemons)

    @property
    def raw(self) -> str:
        """The collator's raw lane."""
        return self.daemon("tailsrv-collate").addresses[0]

    @property
    def acks(self) -> str:
        """The collator's acknowledged lane."""
        return self.daemon("tailsrv-collate").addresses[1]

    @property
    def broadcast(self) -> str:
        """The broadcaster."""
        return self.daemon("tailsrv").addresses[0]

    @property
    def index(self) -> str:
        """The indexer."""
        return self.daemon("tailsrv-index").addresses[0]

    def content(self) -> bytes:
        """The file."""
        return self.path.read_bytes()

    def append(self, data: bytes) -> None:
        """For streams without a collator."""
        with self.path.open("ab") as file:
            file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def append(path: Path, data: bytes) -> None:
    """To the end of a file."""
    with path.open("ab") as file:
        file.write(data)


def assert_content_becomes(stream: StreamUnderTest, content: bytes) -> None:
    """Wait until the stream is as long as `content`, and assert that it is the same."""
    wait_size(stream.path, len(content))
    assert stream.content() == content


def run(command: list[str], data: bytes = b"", **popen: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE, check=False, **popen)


@contextlib.contextmanager
def started(command: list[str], **popen: Any) -> Any:
    """Run a command beside the test; killed at the end if it still runs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def unused_address() -> str:
    """An address where nobody listens: bound and given back."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


class Peer:
    """A server that a test scripts: `serve` is called with each connection, in a thread, one at a time.

    `proves`: it first answers as the right server does, so that `serve` gets only connections after that:
    "broadcast" closes for the header "0 0"; "index" answers it and a request for the count.
    """

    def __init__(self, serve: Callable[[socket.socket], None], *, proves: str = "") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0
        self._serve = serve
        self._proves = proves
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the listener's end is ours
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                with contextlib.suppress(OSError):  # the client's end, whenever it likes
                    if not self._is_proof(sock):
                        self.accepted += 1
                        self._serve(sock)

    def _is_proof(self, sock: socket.socket) -> bool:
        """Prove what it is, once; whether that was all."""
        if self._proves:
            assert sock.recv(4) == b"0 0\n"
            if self._proves == "index":
                sock.sendall(b"error: write N, -N or JSON\n")
                assert sock.recv(100) == b'{"count":true}\n'
                sock.sendall(b'{"number":0,"offset":0,"count":0,"end":0}\n')
            else:
                sock.close()
        proves, self._proves = self._proves, ""
        return proves == "broadcast"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        for sock in self._sockets:  # one may have been accepted last
            sock.close()


def send_lines(producer: Producer, begin: int, end: int) -> None:
    """Messages ``line N``."""
    for number in range(begin, end):
        producer.send(b"line %d" % number)


def unsent(stream: StreamUnderTest, path: Path) -> str:
    """Fill a spool of the producer "a" with 100,000 lines, and stop the collator; its address."""
    spool = Spool(str(path), "a", make_framing("newline"))
    for number in range(100_000):
        spool.append(b"line %d\n" % number)
    spool.close()
    address = stream.acks
    stream.kill("tailsrv-collate")
    return address


def lines(begin: int, end: int) -> bytes:
    """The same as they stand in the file."""
    return b"".join(b"line %d\n" % number for number in range(begin, end))


def kill_process(process: subprocess.Popen[bytes], signum: int = signal.SIGKILL) -> int:
    """End it; its exit code."""
    os.kill(process.pid, signum)
    return process.wait(PATIENCE)
