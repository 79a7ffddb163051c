"""One pass over a stream's bytes for `tailsrv-check`: whole messages, boundaries, the journal's checksums."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import reason
from tailsrv_formats.framing import Framing, FramingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailsrv_formats.journal import Record

BLOCK_BYTES: Final = 1 << 22


class Walk:
    """One pass over the committed bytes: checks framing, boundaries, and the checksums of the journal's records."""

    def __init__(
        self, fd: int, end: int, framing: Framing, records: Iterable[Record], boundaries: dict[int, str]
    ) -> None:
        self._fd = fd
        self._end = end
        self._framing = framing
        self._records = [record for record in records if record.end <= end]
        self._boundaries = boundaries
        self._data = bytearray(BLOCK_BYTES)
        self._position = 0
        self.messages = 0
        """The number of whole messages that `run` has found."""

    def run(self) -> list[str]:
        """Read all of it; the findings, one sentence each."""
        found = []
        for step in (self._walk_messages, self._compare_checksums):
            try:
                found += step()
            except OSError as error:
                found.append(f"byte {self._position} cannot be read: {reason(error)}")
            except MemoryError:
                found.append(f"byte {self._position}: the message there does not fit into memory")
        return found

    def _walk_messages(self) -> list[str]:
        framing, found = self._framing, list[str]()
        wanted = list(self._boundaries)
        wanted.reverse()
        position = 0
        while position < self._end:
            length = self._read(position)
            if length < min(len(self._data), self._end - position):
                end = position + length
                found.append(f"was truncated while it was read: it ends at byte {end}, and had {self._end} bytes")
                return found
            boundary = 0
            while wanted and wanted[-1] <= position + length:
                at = wanted.pop()
                boundary, count = framing.walk(self._data, boundary, length, until=at - position)
                self.messages += count
                if boundary + position != at:
                    found.append(f"byte {at} is not a message boundary, but is {self._boundaries[at]}")
            boundary, count = framing.walk(self._data, boundary, length)
            self.messages += count
            if boundary < length:
                try:
                    framing.missing(self._data, boundary, length)
                except FramingError as error:
                    found.append(f"byte {position + boundary}: {error}; the bytes after it cannot be framed")
                    return found
            position += boundary
            if position + length - boundary >= self._end:
                if boundary < length:
                    found.append(f"byte {position}: an incomplete message of {length - boundary} bytes")
                return found
            if not boundary:
                self._data = bytearray(2 * len(self._data))
        return found

    def _read(self, position: int) -> int:
        self._position = position
        length = min(len(self._data), self._end - position)
        return os.preadv(self._fd, [memoryview(self._data)[:length]], position)

    def _compare_checksums(self) -> list[str]:
        for number, record in enumerate(self._records):
            crc, position = 0, record.start
            while position < record.end:
                self._position = position
                view = memoryview(self._data)[: record.end - position]
                length = os.preadv(self._fd, [view], position)
                if not length:
                    break
                crc = zlib.crc32(view[:length], crc)
                position += length
            if crc != record.crc:
                what = "the last sample" if not number else "a commit"
                return [f"bytes {record.start} to {record.end} do not match the checksum of {what} in the journal"]
        return []
