"""Standard input or a file, to its end: as a producer of the acknowledged port, or to the raw port."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.blocking.connection import Connection, DialogueRunner, Interrupt, SuspendedError
from tailsrv_client.blocking.producer import Producer
from tailsrv_client.errors import GaveUpError
from tailsrv_client.protocol.dialogue import connect, retry
from tailsrv_client.protocol.ports import ACKNOWLEDGED, RAW, answered, wrong_port
from tailsrv_client.protocol.servers import Rotation, Servers, parse_addresses
from tailsrv_formats.errors import TailsrvError, reason
from tailsrv_formats.framing import FramingError, make_framing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_client.progress import Progress
    from tailsrv_client.put.options import Options
    from tailsrv_formats.framing import Framing

READ_BYTES: Final = 1 << 18


def send(options: Options, progress: Progress, on_event: Callable[[str], None]) -> None:
    """Send `options.file`. Raises `TailsrvError`, `FramingError`, `OSError`."""
    fd = 0 if options.file == "-" else os.open(options.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if options.raw:
            _send_raw(options, fd, progress, on_event)
        else:
            _send_acknowledged(options, fd, progress)
    finally:
        if fd:
            os.close(fd)


def _send_acknowledged(options: Options, fd: int, progress: Progress) -> None:
    """On the acknowledged port: everything is acknowledged when this returns."""
    failed = Interrupt()
    framing = make_framing(options.framing, options.max_message_bytes)
    done = 0
    with Producer(
        options.addresses,
        options.name or "",
        framing=options.framing,
        spool=options.spool,
        max_message_bytes=options.max_message_bytes,
        outage=options.timeout,
        on_failure=failed.set,
    ) as producer:

        def read() -> bytes:
            """What comes next; what ends the producer is not left waiting for more input."""
            try:
                failed.wait(None, fd, select.POLLIN)
            except SuspendedError:
                producer.flush()  # raises what it was
            return os.read(fd, READ_BYTES)

        try:
            for messages in whole_messages(read, framing):
                producer.send_framed(messages)
                done += len(messages)
                progress.at(done - producer.in_flight)
        except FramingError:
            producer.flush()  # what came before is as good as ever
            raise
    progress.end(done)


def whole_messages(read: Callable[[], bytes], framing: Framing) -> Iterator[bytes]:
    """The input that `read` returns until it returns b"", cut after whole messages; a last line is completed.

    Raises `FramingError`.
    """
    held = b""
    given = 0
    missing = 1
    pieces: list[bytes] = []
    while data := read():
        pieces.append(data)
        missing -= len(data)
        if missing > 0 or (
            framing.terminator and framing.terminator not in data and sum(map(len, pieces)) < READ_BYTES
        ):
            continue
        held = b"".join((held, *pieces))
        pieces.clear()
        end, _ = framing.walk(held, 0, len(held))
        try:
            missing = framing.missing(held, end, len(held))
        except FramingError as error:
            if end:
                yield held[:end]
            raise FramingError(
                f"at byte {given + end} of the input: {error}; the input is sent up to that byte"
            ) from None
        if end:
            yield held[:end]
            given += end
            held = held[end:]
    held = b"".join((held, *pieces))
    if held and framing.terminator:
        yield held + framing.terminator
    elif held:
        raise FramingError(f"the input ends within a message; its last {len(held)} bytes are not sent")


def _send_raw(options: Options, fd: int, progress: Progress, on_event: Callable[[str], None]) -> None:
    """To the raw port, as `nc` would; but it waits until there is a collator, and says what went wrong."""
    connection = Connection()
    rotation = Rotation(Servers(parse_addresses(options.addresses, RAW), RAW))
    try:
        runner = DialogueRunner(connection, retry(rotation, lambda: connect(rotation), on_event))
        try:
            runner.resume(None if options.timeout is None else time.monotonic() + options.timeout)
        except SuspendedError:
            raise GaveUpError(f"not connected for {options.timeout} s ({rotation.last_error})") from None
        assert connection.socket is not None  # noqa: S101 - the dialogue has connected
        sending = _RawSending(connection.socket, fd, progress)
        try:
            sending.run()
        except OSError as error:
            raise TailsrvError(
                f"{rotation.address}: connection lost after {sending.sent} bytes ({reason(error)}); it is unknown how"
                f" many of them arrived: use the {ACKNOWLEDGED} for acknowledgements, or check that this is the {RAW}"
            ) from None
        if sending.answer:
            raise wrong_port(rotation.address, RAW, answered(sending.answer))
    finally:
        connection.close()
    progress.end(sending.sent)


class _RawSending:
    """A raw port says nothing until it has read everything, and then ends the connection: anything else is an error."""

    def __init__(self, sock: socket.socket, fd: int, progress: Progress) -> None:
        self._socket, self._fd, self._progress = sock, fd, progress
        self.sent = 0
        self.answer = b""
        """What the server has said, which ends it."""

    def run(self) -> None:
        """Send everything, and wait for the end. Raises `OSError`."""
        data = b""
        watched = select.poll()
        watched.register(self._fd, select.POLLIN)
        watched.register(self._socket, select.POLLIN)
        while True:
            ready = dict(watched.poll())
            if ready.get(self._socket.fileno(), 0) & ~select.POLLOUT:
                self.answer = self._socket.recv(READ_BYTES)
                if self.answer:
                    return
                raise ConnectionError("ended before everything was sent")
            if not data:
                try:
                    data = os.read(self._fd, READ_BYTES)
                except OSError as error:
                    raise TailsrvError(f"cannot read the input after {self.sent} bytes: {reason(error)}") from None
                if not data:
                    break
                watched.unregister(self._fd)
                watched.modify(self._socket, select.POLLIN | select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                count = self._socket.send(data)
                data = data[count:]
                self.sent += count
                self._progress.at(self.sent)
            if not data:
                watched.register(self._fd, select.POLLIN)
                watched.modify(self._socket, select.POLLIN)
        self._socket.setblocking(True)
        self._socket.shutdown(socket.SHUT_WR)
        self.answer = self._socket.recv(READ_BYTES)
