"""Standard input or a file, to its end: as a named producer, or without a name on the raw lane."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from collator.framing import FramingError, make_framing
from tailsrv.client import Rotation, connect, parse_addresses
from tailsrv_client.errors import ClientError
from tailsrv_client.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from collator.framing import Framing
    from tailsrv_client.put.options import Options
    from tailsrv_client.terminal import Progress

READ_BYTES: Final = 1 << 18


def send(options: Options, progress: Progress, tell: Callable[[str], None]) -> None:
    """Send `options.file`. Raises `ClientError`, `FramingError`, `OSError`."""
    fd = 0 if options.file == "-" else os.open(options.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if options.name is None:
            _send_raw(options, fd, progress, tell)
        else:
            _send_named(options, fd, progress)
    finally:
        if fd:
            os.close(fd)


def _send_named(options: Options, fd: int, progress: Progress) -> None:
    """On the acknowledged lane: everything is acknowledged when this returns."""
    assert options.name is not None  # noqa: S101 - `send` looked
    framing = make_framing(options.framing, options.max_message_bytes)
    done = 0
    with Producer(
        options.addresses,
        options.name,
        framing=options.framing,
        spool=options.spool,
        max_message_bytes=options.max_message_bytes,
    ) as producer:
        try:
            for messages in whole_messages(fd, framing):
                producer.send_whole(messages)
                done += len(messages)
                progress.at(done - producer.in_flight)
        except FramingError:
            producer.flush()  # what came before is as good as ever
            raise
    progress.end(done)


def whole_messages(fd: int, framing: Framing) -> Iterator[bytes]:
    """What `fd` gives, cut behind whole messages; a last line without its end is completed. Raises `FramingError`."""
    held = b""
    given = 0
    missing = 1
    pieces: list[bytes] = []
    while data := os.read(fd, READ_BYTES):
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
            raise FramingError(f"at byte {given + end} of the input: {error}; nothing from there on is sent") from None
        if end:
            yield held[:end]
            given += end
            held = held[end:]
    held = b"".join((held, *pieces))
    if held and framing.terminator:
        yield held + framing.terminator
    elif held:
        raise FramingError(f"the input ends within a message, {len(held)} bytes from its start; those are not sent")


def _send_raw(options: Options, fd: int, progress: Progress, tell: Callable[[str], None]) -> None:
    """On the raw lane, as `nc` would; but it waits until there is a collator, and says what went wrong."""
    done = 0
    with _connect(options.addresses, tell) as sock:
        try:
            while data := os.read(fd, READ_BYTES):
                sock.sendall(data)
                done += len(data)
                progress.at(done)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(READ_BYTES):
                pass  # the lane says nothing; its end is when the collator has read everything
        except OSError as error:
            raise ClientError(
                f"lost after {done} bytes ({error.strerror or error}); how many of them arrived nobody knows:"
                " give --name to have them acknowledged"
            ) from None
    progress.end(done)


def _connect(addresses: str, tell: Callable[[str], None]) -> socket.socket:
    rotation = Rotation(parse_addresses(addresses))
    while True:
        try:
            return connect(rotation.address)
        except OSError as error:
            address = rotation.address
            pause = rotation.failed()
            tell(f"{address}: {error.strerror or error}; next: {rotation.address}")
            time.sleep(pause)
