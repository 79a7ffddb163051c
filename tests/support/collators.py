"""Collators, their producers, and the files that they write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailsrv_formats.commit_mark import MARK_BYTES, decode
from tailsrv_formats.framing import make_framing
from tests.support.daemons import Daemon
from tests.support.sockets import read_to_end
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from pathlib import Path

RAW, ACK = 0, 1
"""The numbers of the ports' addresses."""


def collate(path: Path, *options: str, **settings: Any) -> Daemon:
    """A collator with both ports."""
    return Daemon(
        "tailsrv-collate", path, "--listen", "127.0.0.1:0", "--ack-listen", "127.0.0.1:0", *options, **settings
    )


class Producer:
    """A client of the acknowledged port."""

    def __init__(self, collator: Daemon, name: str = "", number: int = ACK) -> None:
        self.sock = collator.connect(number)
        self.sock.sendall(name.encode() + b"\n")
        self._heard = b""

    def line(self) -> bytes:
        """The next line without its newline; empty at the end."""
        while b"\n" not in self._heard:
            data = self.sock.recv(4096)
            if not data:
                break
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def rest(self) -> bytes:
        """All that still comes."""
        heard, self._heard = self._heard, b""
        return heard + read_to_end(self.sock)

    def told(self) -> tuple[int, int]:
        """ACKED and AT of the next line."""
        acked, at = self.line().split(b" ")
        return int(acked), int(at)

    def until(self, acked: int) -> list[tuple[int, int]]:
        """The lines up to the one that acknowledges so many bytes."""
        lines = [self.told()]
        while lines[-1][0] < acked:
            lines.append(self.told())
        return lines

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        self.sock.close()

    __del__ = close  # a test that is done with a producer need not say so


def raw(collator: Daemon, data: bytes, *, number: int = RAW) -> None:
    """Send bytes on the raw port, and end cleanly."""
    with collator.connect(number) as sock:
        sock.sendall(data)


def mark(path: Path) -> int | None:
    """What the commit mark says."""
    return decode(path.with_name(path.name + ".commit").read_bytes()[:MARK_BYTES])


def wait_committed(path: Path, size: int) -> bytes:
    """Wait until so many bytes are committed; FILE up to there."""
    wait_until(lambda: (mark(path) or 0) >= size, f"{size} bytes are committed")
    return path.read_bytes()[: mark(path)]


def messages(path: Path, framing: str = "newline") -> list[bytes]:
    """The payloads in FILE, which must be whole."""
    data = path.read_bytes()
    frames = make_framing(framing)
    assert frames.walk(data, 0, len(data))[0] == len(data), "the file ends with a whole message"
    return frames.payloads(data, 0, len(data))
