"""The producers: many named ones on the acknowledged lane, in one thread, through every death of the collator.

Each sends its stream, hears ACKED, and after any break connects again and goes on at the byte that it is told.
Along the way it holds the collator to what the lines say: ACKED never goes back and never runs ahead, it
stands on a message boundary, and the bytes since the last line stand right before AT. Now and then a producer
leaves its old connection open and uses it after a new one has taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.faults.checker import Findings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.faults.daemon import Target
    from tests.faults.messages import Stream

_CHUNK: Final = 1 << 16
_RETRY: Final = 0.01  # s between attempts to connect while the collator is down
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNABORTED)


@dataclass(frozen=True)
class Piece:
    """One line heard: the producer's bytes from `start` to `end` stand right before byte `at` of the file."""

    stream: Stream
    start: int
    end: int
    at: int


@dataclass(eq=False)
class _Connection:
    sock: socket.socket
    producer: Producer
    heard: bytearray = field(default_factory=bytearray)
    out: bytearray = field(default_factory=bytearray)
    told: int | None = None
    edge: int = 0
    position: int = 0


@dataclass(eq=False)
class Producer:
    """One named producer: what it has been promised and how far it has sent."""

    stream: Stream
    promised: int = 0
    sent: int = 0
    goal: int | None = None
    connection: _Connection | None = None
    zombie: _Connection | None = None
    zombie_limit: int | None = None
    retry_at: float = 0.0
    lines: int = 0


class Load:
    """Drives all producers in a thread until `finish`.

    `window`: bytes that a producer sends ahead of what is acknowledged, or one message if that is larger.
    `zombies`: the share of ACKED lines after which a producer takes its own name over while its old connection
    still sends. `messages`: stop by itself after that many messages each; None goes on until `finish`.
    """

    def __init__(
        self,
        target: Target,
        streams: Iterable[Stream],
        *,
        window: int = 1 << 17,
        zombies: float = 0.0,
        messages: int | None = None,
        seed: int = 0,
    ) -> None:
        self.target = target
        self.producers = [Producer(stream) for stream in streams]
        self.window = window
        self.findings = Findings()
        self.pieces: list[Piece] = []
        self.progress = threading.Event()
        self.refused = 0
        self.takeovers = 0
        self._random = random.Random(seed)
        self._zombies = zombies
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._stop = False
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        if messages is not None:
            self.finishing(messages)

    @property
    def promised(self) -> dict[str, int]:
        """What each producer has been told, in bytes of its stream."""
        return {producer.stream.name: producer.promised for producer in self.producers}

    @property
    def streams(self) -> Sequence[Stream]:
        """The producers' streams."""
        return [producer.stream for producer in self.producers]

    def start(self) -> Load:
        """Begin."""
        self._thread.start()
        return self

    def finishing(self, messages: int | None = None) -> None:
        """Let every producer end: after `messages`, or soon behind what it has sent, on a message that names it."""
        with self._lock:
            for producer in self.producers:
                stream = producer.stream
                edge = producer.sent
                if producer.connection is not None and producer.connection.told is not None:
                    edge = max(edge, producer.connection.position + len(producer.connection.out))
                last = messages or stream.count_above(edge)
                while not stream.is_named(last - 1):
                    last += 1
                producer.goal = stream.end(last - 1)
        self._nudge()

    def finish(self, timeout: float) -> bool:
        """Wait until everything sent is acknowledged; False when it is not in time. The load has ended then."""
        if any(producer.goal is None for producer in self.producers):
            self.finishing()
        complete = self._done.wait(timeout)
        self.close()
        return complete

    def complete(self) -> bool:
        """Whether all that was to be sent has been acknowledged."""
        return self._done.is_set()

    def wait_promised(self, more: int, timeout: float) -> bool:
        """Wait until `more` further bytes have been promised to all producers together."""
        deadline = time.monotonic() + timeout
        wanted = sum(self.promised.values()) + more
        while sum(self.promised.values()) < wanted:
            self.progress.clear()
            left = deadline - time.monotonic()
            if left <= 0 or self._error is not None:
                return False
            self.progress.wait(min(left, 0.5))
        return True

    def close(self) -> None:
        """Break all connections off and end the thread."""
        self._stop = True
        self._nudge()
        if self._thread.is_alive():
            self._thread.join()
        for producer in self.producers:
            self._drop(producer)
        if self._waker >= 0:
            os.close(self._waker)
            os.close(self._wake)
            self._selector.close()
            self._waker = -1
        if self._error is not None:
            raise self._error

    def _nudge(self) -> None:
        if self._waker >= 0:
            os.write(self._waker, b".")

    def _run(self) -> None:
        try:
            while not self._stop:
                with self._lock:
                    pause = self._connect_all()
                for key, events in self._selector.select(pause):
                    if key.data is None:
                        os.read(self._wake, 4096)
                        continue
                    with self._lock:
                        self._serve(key.data, events)
        except BaseException as error:  # noqa: BLE001  # raised again in `close`, where the scenario sees it
            self._error = error
            self.progress.set()

    def _connect_all(self) -> float | None:
        """Connect whoever is not; gives how long to wait before the next attempt."""
        address = self.target.address
        now = time.monotonic()
        waiting = []
        for producer in self.producers:
            if producer.connection is not None or producer.promised == producer.goal:
                continue
            if address is None or producer.retry_at > now:
                waiting.append(max(_RETRY, producer.retry_at - now))
                continue
            self._connect(producer, address)
        if all(producer.promised == producer.goal for producer in self.producers):
            self._done.set()
        return min(waiting, default=None)

    def _connect(self, producer: Producer, address: tuple[str, int]) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        connection = _Connection(sock, producer, out=bytearray(producer.stream.name.encode() + b"\n"))
        producer.connection = connection
        result = sock.connect_ex(address)
        if result not in (0, errno.EINPROGRESS):
            self._lost(connection)
            return
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _lost(self, connection: _Connection) -> None:
        producer = connection.producer
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.sock.close()
        if producer.connection is connection:
            producer.connection = None
            producer.retry_at = time.monotonic() + _RETRY
            self.refused += 1
        if producer.zombie is connection:
            producer.zombie = None
            producer.zombie_limit = None

    def _drop(self, producer: Producer) -> None:
        for connection in (producer.connection, producer.zombie):
            if connection is not None:
                self._lost(connection)

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._hear(connection):
                self._lost(connection)
                return
            if connection.sock.fileno() >= 0:
                self._send(connection)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._lost(connection)

    def _hear(self, connection: _Connection) -> bool:
        data = connection.sock.recv(_CHUNK)
        if not data:
            return False
        connection.heard += data
        *lines, rest = connection.heard.split(b"\n")
        connection.heard = rest
        for line in lines:
            self._line(connection, bytes(line))
        return True

    def _line(self, connection: _Connection, line: bytes) -> None:
        """Hold one ACKED line against what it promises."""
        producer = connection.producer
        stream = producer.stream
        words = line.split(b" ")
        if len(words) != 2 or not all(word.isdigit() for word in words):
            self._broken(f"{stream.name} heard {line!r}")
            return
        acked, at = int(words[0]), int(words[1])
        if not self._weigh(connection, acked):
            connection.sock.shutdown(socket.SHUT_RDWR)
            return
        if connection is producer.zombie:
            return
        if connection.told is None:
            connection.position = acked
            count = stream.count_upto(acked)
            if acked and count:
                self.pieces.append(Piece(stream, stream.end(count - 2) if count > 1 else 0, acked, at))
            if producer.zombie is not None:
                producer.zombie_limit = acked
                self._haunt(producer.zombie)
        elif acked > connection.told:
            self.pieces.append(Piece(stream, connection.told, acked, at))
        connection.told = acked
        connection.edge = max(acked + self.window, stream.end(stream.count_upto(acked) or 0))
        producer.promised = acked
        producer.lines += 1
        self.progress.set()
        if self._zombies and producer.zombie is None and self._random.random() < self._zombies:
            self._take_over(producer, connection)

    def _weigh(self, connection: _Connection, acked: int) -> bool:
        """Hold the number itself against what this producer has sent and was told; False: it can't be used."""
        producer = connection.producer
        stream = producer.stream
        if acked > producer.sent + _CHUNK or stream.count_upto(acked) is None:
            self._broken(
                f"{stream.name} has sent {producer.sent} bytes and hears {acked}: too far, or inside a message"
            )
            return False
        if connection is producer.zombie:
            if producer.zombie_limit is not None and acked > producer.zombie_limit:
                self.findings.twice += 1
                self.findings.note(f"{stream.name}: a connection that was taken over is told {acked}")
            return True
        if acked < producer.promised:
            self.findings.lost += (stream.count_upto(producer.promised) or 0) - (stream.count_upto(acked) or 0)
            self.findings.note(f"{stream.name} was promised {producer.promised} bytes and now hears {acked}")
        if acked > producer.sent:
            self._broken(f"{stream.name} has sent {producer.sent} bytes and hears {acked}")
        return True

    def _broken(self, text: str) -> None:
        self.findings.other += 1
        self.findings.note(text)

    def _take_over(self, producer: Producer, connection: _Connection) -> None:
        address = self.target.address
        if address is None:
            return
        self.takeovers += 1
        producer.zombie = connection
        producer.connection = None
        self._connect(producer, address)

    def _haunt(self, zombie: _Connection) -> None:
        """Send on a connection that was taken over what it would have sent next."""
        producer = zombie.producer
        with contextlib.suppress(OSError):  # closed already, as it should be
            data = bytes(zombie.out) or producer.stream.read(zombie.position, zombie.position + 4096)
            zombie.sock.send(data)

    def _send(self, connection: _Connection) -> None:
        producer = connection.producer
        haunting = connection is producer.zombie
        if not connection.out and connection.told is not None and not haunting:
            end = min(connection.edge, connection.position + _CHUNK)
            if producer.goal is not None:
                end = min(end, producer.goal)
            if end > connection.position:
                connection.out += producer.stream.read(connection.position, end)
        if connection.out and not haunting:
            count = connection.sock.send(connection.out)
            del connection.out[:count]
            if connection.told is not None:
                connection.position += count
                producer.sent = max(producer.sent, connection.position)
        wants = bool(connection.out) or (
            connection.told is not None
            and connection.position < connection.edge
            and (producer.goal is None or connection.position < producer.goal)
        )
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wants and not haunting else 0)
        self._selector.modify(connection.sock, events, connection)


def check_pieces(path: Path, pieces: Iterable[Piece]) -> Findings:
    """Check each line heard against the file: the producer's bytes stand right before AT."""
    found = Findings()
    with path.open("rb") as file:
        for piece in pieces:
            file.seek(max(0, piece.at - (piece.end - piece.start)))
            if file.read(piece.end - piece.start) != piece.stream.read(piece.start, piece.end):
                found.other += 1
                found.note(f"{piece.stream.name} heard {piece.end} {piece.at}, but its bytes do not end there")
    return found
