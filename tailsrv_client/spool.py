r"""A store that outlives its process: what a producer was given and the collator has not acknowledged.

    tailsrv-spool 1 NAME FRAMING BASE CRC32\\n      BASE: 20 digits, or 20 dashes while it isn't known; CRC-32 of what
    message message message …                     is before it, 8 hexadecimal digits

BASE is the offset, in the producer's stream, of the first byte behind this line. It is durable before a byte is
sent: from then on the collator's ACKED says what of the file is still to be sent. The file is rewritten without its
acknowledged part, whole and by a rename, when that has become the larger part of it. Its messages are in the
kernel's hands when `append` returns: a kill loses none; a power cut may lose the last ones.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING, Final

from tailsrv_client.errors import CheckpointError
from tailsrv_client.files import replace, take

if TYPE_CHECKING:
    from collator.framing import Framing

MAGIC: Final = b"tailsrv-spool 1 "
HEADER_BYTES: Final = 256
"""No header is longer."""

COMPACT_BYTES: Final = 4 << 20
"""Acknowledged bytes for whose sake a spool is rewritten."""

_UNKNOWN: Final = b"-" * 20
_PIECE: Final = 4 << 20


def encode_header(name: str, framing: str, base: int | None) -> bytes:
    """The first line of a spool."""
    place = _UNKNOWN if base is None else b"%020d" % base
    line = MAGIC + b"%s %s %s" % (name.encode(), framing.encode(), place)
    return line + b" %08x\n" % zlib.crc32(line)


def decode_header(line: bytes) -> tuple[str, str, int | None]:
    """Name, framing and base. Raises `CheckpointError`."""
    body, _, crc = line.removesuffix(b"\n").rpartition(b" ")
    fields = body.removeprefix(MAGIC).split(b" ")
    if not line.endswith(b"\n") or not body.startswith(MAGIC) or crc != b"%08x" % zlib.crc32(body) or len(fields) != 3:
        raise CheckpointError("no spool of a producer, or a damaged one; what it holds was not acknowledged")
    name, framing, place = fields
    return name.decode(), framing.decode(), None if place == _UNKNOWN else int(place)


class Spool:
    """A `Store` in the file `path`, ours alone until `close`; one name and one framing a file."""

    def __init__(self, path: str, name: str, framing: Framing) -> None:
        self.path = path
        self.base: int | None = None
        self.start = self.end = 0
        self._name, self._framing = name, framing
        self._first = 0
        self._header = 0
        self._fd = -1
        self._lock = take(path)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """See `Store`. Raises `OSError`; nothing of `data` is kept then."""
        at = self._offset(self.end)
        written = os.pwrite(self._fd, data, at)
        while written < len(data):
            try:
                written += os.pwrite(self._fd, data[written:], at + written)
            except OSError:
                os.ftruncate(self._fd, at)
                raise
        self.end += len(data)

    def read(self, position: int, limit: int) -> bytes:
        """See `Store`."""
        return os.pread(self._fd, limit, self._offset(position))

    def discard(self, position: int) -> None:
        """See `Store`."""
        self.start = position
        if position - self._first >= max(COMPACT_BYTES, self.end - position):
            with contextlib.suppress(OSError):  # it only saves space; the next acknowledgement tries again
                self._rewrite()

    def anchor(self, base: int) -> None:
        """See `Store`."""
        self.base = base
        self._rewrite()

    def close(self) -> None:
        """Let another process have it. What is acknowledged leaves the file."""
        if self._fd >= 0:
            if self.start > self._first:
                self._rewrite()
            os.close(self._fd)
            self._fd = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _offset(self, position: int) -> int:
        return self._header + position - self._first

    def _open(self) -> None:
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self._rewrite()
            return
        head = os.pread(self._fd, HEADER_BYTES, 0)
        line = head[: head.find(b"\n") + 1]
        try:
            name, framing, self.base = decode_header(line)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None
        if (name, framing) != (self._name, self._framing.name):
            raise CheckpointError(
                f"{self.path} is the spool of {name!r} with {framing} framing, not of {self._name!r} with"
                f" {self._framing.name}; a spool serves one producer"
            )
        self._header = len(line)
        self.end = self._whole()
        os.ftruncate(self._fd, self._header + self.end)

    def _whole(self) -> int:
        """How many bytes are whole messages: a kill may have torn the last one, whose `append` never returned."""
        size = os.fstat(self._fd).st_size - self._header
        whole, limit = 0, _PIECE
        while whole < size:
            data = os.pread(self._fd, limit, self._header + whole)
            end, _ = self._framing.walk(data, 0, len(data))
            if end == 0:
                if len(data) < limit:
                    break
                limit *= 2
            whole += end
        return whole

    def _rewrite(self) -> None:
        held = os.pread(self._fd, self.end - self.start, self._offset(self.start)) if self._fd >= 0 else b""
        base = None if self.base is None else self.base + self.start
        header = encode_header(self._name, self._framing.name, base)
        fd = replace(self.path, header + held)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._header, self._first = fd, len(header), self.start
