"""A small honest collator with switches for bugs: the harness's control, not a product.

A harness that finds nothing proves nothing until it has found what was planted. This collator keeps the
promises of PROTOCOLS section 3 in the plainest way, one batch at a time, and breaks one of them for each
`--bug`. It imports the standard library alone (it starts in 30 ms, so a kill loop is short) and shares no
code with the product or with the checker.

Its journal: one line a commit, CRC-32 of the rest of the line in hex, a space, then JSON: where the commit
ends in FILE, how many bytes it added, their CRC-32, and [ACKED, AT] of each producer that it moved.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
import zlib
from pathlib import Path

BUGS = {
    "no-sync": "nothing is ever synced",
    "ack-first": "ACKED is sent when the bytes are written, before they are synced",
    "no-repair": "a start goes on behind whatever FILE holds",
    "withdraw": "the commit mark moves before the journal knows the bytes",
    "no-takeover": "a second connection with the same name leaves the first one alone",
    "forget": "the journal does not keep what producers were told",
    "retry-sync": "a failed sync is tried again until it succeeds",
    "skip-full": "what a full disk refuses is dropped and acknowledged",
}
_STEP = 1 << 18


class Connection:
    """One producer: what it has sent and what it is still to hear."""

    def __init__(self, sock: socket.socket, *, acknowledged: bool) -> None:
        self.sock = sock
        self.lane = acknowledged
        self.name: str | None = None if acknowledged else ""
        self.held = bytearray()
        self.out = bytearray()
        self.told = [0, 0]
        self.ended = False
        self.dead = False


class Collator:
    """FILE, what lies beside it, and its producers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.bugs = set(options.bug)
        self.options = options
        self.path = options.file
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{self.path} is held by another process")
        self.journal = os.open(f"{self.path}.producers", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        self.marks = os.open(f"{self.path}.commit", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        self.turn = 0
        self.known: dict[str, list[int]] = {}
        self.length = 0
        self.recorded = 0
        self.unrecorded = b""
        self.recover()
        self.pending: list[tuple[Connection, bytes]] = []
        self.connections: dict[int, Connection] = {}
        self.unwritten = memoryview(b"")
        self.adding = b""

    def sync(self, fd: int) -> None:
        if "no-sync" in self.bugs or self.options.sync == "never":
            return
        for left in reversed(range(50 if "retry-sync" in self.bugs else 1)):
            try:
                os.fdatasync(fd)
            except OSError:
                if not left:
                    raise
            else:
                return

    def recover(self) -> None:
        """Go back to the last journal record that FILE bears out; what lies behind it is set aside."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self.journal, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(self.fd).st_size
        journal = self.read(self.journal, 0, os.fstat(self.journal).st_size)
        good = 0
        for line in journal.splitlines(keepends=True):
            crc, _, body = line.partition(b" ")
            if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
                break
            record = json.loads(body)
            start = record["end"] - record["added"]
            if record["end"] > size or zlib.crc32(self.read(self.fd, start, record["added"])) != record["crc"]:
                break
            self.length = record["end"]
            self.known.update(record["told"])
            good += len(line)
        if not journal:
            self.length = self.adopted(size)
        elif size > self.length and "no-repair" not in self.bugs:
            self.rescue(size)
        elif size > self.length:
            self.length = size
        os.ftruncate(self.journal, good)
        self.recorded = good
        os.ftruncate(self.marks, 0)
        if not journal:
            self.note(0, 0, {})
            self.recorded = os.pwrite(self.journal, self.unrecorded, 0)
            self.unrecorded = b""
        self.mark()
        for fd in (self.fd, self.journal, self.marks):
            self.sync(fd)
        if "no-sync" not in self.bugs and self.options.sync != "never":
            folder = os.open(Path(self.path).parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    @staticmethod
    def read(fd: int, start: int, length: int) -> bytes:
        parts = []
        while length and (part := os.pread(fd, length, start)):
            parts.append(part)
            start += len(part)
            length -= len(part)
        return b"".join(parts)

    def adopted(self, size: int) -> int:
        if size and self.options.framing == "newline" and os.pread(self.fd, 1, size - 1) != b"\n":
            return size + os.pwrite(self.fd, b"\n", size)
        return size

    def rescue(self, size: int) -> None:
        name = f"{self.path}.rescued-{time.time_ns()}-{self.length}"
        aside = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        at = self.length
        while part := self.read(self.fd, at, min(_STEP, size - at)):
            os.write(aside, part)
            at += len(part)
        self.sync(aside)
        os.close(aside)
        os.ftruncate(self.fd, self.length)

    def mark(self) -> None:
        digits = b"%020d" % self.length
        while not self.write(self.marks, b"%s %08x\n" % (digits, zlib.crc32(digits)), 30 * self.turn):
            time.sleep(0.01)
        self.turn ^= 1

    def note(self, added: int, crc: int, told: dict[str, list[int]]) -> None:
        body = json.dumps({"end": self.length, "added": added, "crc": crc, "told": told}).encode() + b"\n"
        self.unrecorded = b"%08x %s" % (zlib.crc32(body), body)

    def write(self, fd: int, data: bytes | memoryview, at: int) -> int:
        """Write what there is room for; gives the number of bytes."""
        try:
            return os.pwrite(fd, data, at)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return len(data) if "skip-full" in self.bugs else 0

    def whole(self, held: bytearray) -> int:
        """How many bytes of `held` are whole messages."""
        framing = self.options.framing
        if framing in ("newline", "nul"):
            return held.rfind(b"\n" if framing == "newline" else b"\0") + 1
        size, order = {"u16be": (2, "big"), "u32be": (4, "big"), "u32le": (4, "little")}[framing]
        at = 0
        while at + size <= len(held):
            after = at + size + int.from_bytes(held[at : at + size], "big" if order == "big" else "little")
            if after > len(held):
                break
            at = after
        return at

    def gather(self) -> None:
        for connection in self.connections.values():
            if connection.name is None or connection.dead:
                continue
            if connection.ended and not connection.lane and connection.held and self.options.framing == "newline":
                connection.held += b"" if connection.held.endswith(b"\n") else b"\n"
            if end := self.whole(connection.held):
                self.pending.append((connection, bytes(connection.held[:end])))
                del connection.held[:end]
        self.adding = b"".join(data for _, data in self.pending)
        self.unwritten = memoryview(self.adding)

    def commit(self) -> bool:
        """Write, sync, show, tell; False while there is no room for it."""
        if not self.unrecorded:
            while self.unwritten:
                at = self.length + len(self.adding) - len(self.unwritten)
                if not (wrote := self.write(self.fd, self.unwritten, at)):
                    return False
                self.unwritten = self.unwritten[wrote:]
            self.length += len(self.adding)
            told = self.telling()
            if "ack-first" in self.bugs:
                self.tell()
            if "withdraw" in self.bugs:
                self.mark()
            self.sync(self.fd)
            self.note(len(self.adding), zlib.crc32(self.adding), {} if "forget" in self.bugs else told)
        while self.unrecorded:
            if not (wrote := self.write(self.journal, self.unrecorded, self.recorded)):
                return False
            self.recorded += wrote
            self.unrecorded = self.unrecorded[wrote:]
        self.sync(self.journal)
        self.mark()
        if "ack-first" not in self.bugs:
            self.tell()
        self.pending.clear()
        return True

    def telling(self) -> dict[str, list[int]]:
        told: dict[str, list[int]] = {}
        at = self.length - len(self.adding)
        for connection, data in self.pending:
            at += len(data)
            connection.told = [connection.told[0] + len(data), at]
            if connection.name:
                told[connection.name] = connection.told
        self.known.update(told)
        return told

    def tell(self) -> None:
        for connection, _ in self.pending:
            if connection.lane:
                connection.out += b"%d %d\n" % tuple(connection.told)
                self.send(connection)

    def send(self, connection: Connection) -> None:
        try:
            while connection.out:
                del connection.out[: connection.sock.send(connection.out)]
        except BlockingIOError:
            return
        except OSError:
            connection.dead = True

    def named(self, connection: Connection) -> None:
        end = connection.held.find(b"\n")
        if end < 0:
            connection.dead = connection.ended or len(connection.held) > 200
            return
        connection.name = connection.held[:end].rstrip(b"\r").decode("ascii", "replace")
        del connection.held[: end + 1]
        for other in self.connections.values():
            if other is not connection and connection.name and other.name == connection.name:
                connection.told = other.told
                if "no-takeover" not in self.bugs:
                    other.dead = True
                    other.sock.shutdown(socket.SHUT_RDWR)
        connection.told = list(self.known.get(connection.name, [0, 0]))
        connection.out += b"%d %d\n" % tuple(connection.told)
        self.send(connection)

    def receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_STEP)
        except BlockingIOError:
            return
        except OSError:
            connection.dead = True
            return
        connection.held += data
        connection.ended = connection.ended or not data
        if connection.name is None:
            self.named(connection)

    def close_ended(self, poller: select.epoll) -> None:
        for number, connection in list(self.connections.items()):
            if connection.ended and not connection.dead and not self.pending:
                if connection.lane and connection.name is not None:
                    connection.out += b"%d %d\n" % tuple(connection.told)
                    self.send(connection)
                connection.dead = True
            if connection.dead and not any(waits is connection for waits, _ in self.pending):
                with contextlib.suppress(FileNotFoundError):
                    poller.unregister(number)
                connection.sock.close()
                del self.connections[number]

    def held_bytes(self) -> int:
        return len(self.unwritten) + sum(len(one.held) for one in self.connections.values())

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM."""
        poller = select.epoll()
        poller.register(listener, select.EPOLLIN)
        stopping: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
        while not stopping:
            full = bool(self.pending)
            for number, event in poller.poll(0.05 if full else 1):
                if number == listener.fileno():
                    with contextlib.suppress(BlockingIOError):
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        self.connections[sock.fileno()] = Connection(sock, acknowledged=bool(self.options.ack_listen))
                        poller.register(sock, select.EPOLLIN)
                elif number in self.connections and not full and self.held_bytes() < self.options.buffer_bytes:
                    self.receive(self.connections[number])
                elif event & (select.EPOLLHUP | select.EPOLLERR) and full:
                    self.connections[number].dead = True
                    poller.unregister(number)
            if not full:
                self.gather()
            if self.pending:
                self.commit()
            if self.held_bytes() >= self.options.buffer_bytes and not self.pending:
                max(self.connections.values(), key=lambda one: len(one.held)).dead = True
            self.close_ended(poller)
            for connection in self.connections.values():
                if connection.out:
                    self.send(connection)


def main() -> None:
    """Run the control."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--framing", default="newline")
    parser.add_argument("--sync", default="always")
    parser.add_argument("--buffer-bytes", type=int, default=256 << 20)
    parser.add_argument("--listen")
    parser.add_argument("--ack-listen")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--bug", action="append", default=[], choices=[*BUGS])
    options = parser.parse_args()
    try:
        collator = Collator(options)
        host, _, port = (options.listen or options.ack_listen).rpartition(":")
        listener = socket.create_server((host, int(port)), backlog=4096)
        listener.setblocking(False)
        host, port = listener.getsockname()[:2]
        os.write(options.ready_fd, json.dumps({"addresses": [f"{host}:{port}"]}).encode() + b"\n")
        os.close(options.ready_fd)
        collator.run(listener)
    except OSError as error:
        sys.exit(f"{options.file}: {error}; nothing more is acknowledged, the next start trusts the disk alone")


if __name__ == "__main__":
    main()
