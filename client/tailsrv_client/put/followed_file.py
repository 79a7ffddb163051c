"""A file that is being followed: its identity, and its bytes as the source of a session."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from tailsrv_client.errors import ProducerDiverged
from tailsrv_formats.framing import FramingError

if TYPE_CHECKING:
    from tailsrv_formats.framing import Framing

FS_IOC_GETVERSION: Final = 0x80087601
"""_IOR('v', 1, long) of linux/fs.h: an inode's generation."""

HEAD_BYTES: Final = 1 << 16
"""How much is read at first to find where the first message ends."""

PREFIX_BYTES: Final = 16
"""More than any length prefix has."""

TAIL_BYTES: Final = 64
"""The number of bytes that are compared to find out whether a file still holds what was sent."""


class ReplacedError(ProducerDiverged):
    """The file no longer holds what was sent of it."""


class Identity(NamedTuple):
    """Which file it is, whatever it is called. Without generations a deleted file's number comes back before long."""

    device: int
    inode: int
    generation: int | None


class Tail(NamedTuple):
    """Up to 64 bytes of a file, and where they end."""

    end: int
    data: bytes


def identify(fd: int) -> Identity:
    """The identity of the open file."""
    status = os.fstat(fd)
    try:
        (generation,) = struct.unpack("L", fcntl.ioctl(fd, FS_IOC_GETVERSION, bytes(8)))
    except OSError:
        generation = None  # tmpfs, overlayfs, network file systems
    return Identity(status.st_dev, status.st_ino, None if generation is None else generation & 0xFFFFFFFF)


class Head:
    """The first message of a file as a `Source`: the whole stream of a producer of its own."""

    start = 0
    anchored = True

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.end: int = len(message)

    def has_message(self, position: int) -> bool:
        """See `Source`."""
        return position < self.end

    def anchor(self, acked: int) -> None:
        """See `Source`: never asked for."""

    def discard(self, position: int) -> None:
        """See `Source`: it is needed to know where the next stream begins."""

    def tidy(self) -> None:
        """See `Source`: nothing is written here."""

    def read(self, position: int, limit: int) -> bytes:
        """See `Source`."""
        return self.message[position : position + limit]


class FollowedFile:
    """An open file as a `Source`: byte N of the producer's stream is byte N + `shift` of the file."""

    start = 0
    anchored = True

    def __init__(self, fd: int, framing: Framing) -> None:
        self.fd = fd
        self.identity: Identity = identify(fd)
        self.size: int = os.fstat(fd).st_size
        self.was_rotated = False
        """Whether it was sent to its end before: its last line may have been completed."""
        self.shift: int = 0
        self._framing = framing
        self._completion = b""
        self._inserted: int | None = None
        """The byte of the stream that completed a last line to which a late writer has appended since."""
        self._looked_for = (0, 0, False)
        """The last answer of `has_message`, and what it was for."""
        self.tail: Tail = Tail(0, b"")
        """The last bytes that were sent, or are being sent."""

    def begin(self, first: bytes) -> None:
        """`first`, its first message, is sent as a producer of its own."""
        self.shift, self._inserted = 0, None
        end = min(len(first), self.size)  # one byte less where its end is not in the file
        self.tail = Tail(end, first[:end][-TAIL_BYTES:])

    def resume(self, shift: int, offset: int) -> None:
        """Be the source of another producer, from byte `offset` of the file on."""
        self.shift, self._inserted = shift, None
        self.tail = self.tail_at(min(offset, self.size))
        if offset == self.size + 1 and not self.is_whole:
            self._completion = self._framing.terminator  # it was sent, when the file was rotated

    @property
    def end(self) -> int:
        """See `Source`."""
        return self.length - self.shift + (self._inserted is not None)

    @property
    def length(self) -> int:
        """How many bytes it has, with what completes its last line."""
        return self.size + len(self._completion)

    def has_message(self, position: int) -> bool:
        """See `Source`."""
        at = self.offset(position)
        if self._completion or at >= self.size or (self._inserted is not None and position <= self._inserted):
            return position < self.end
        asked = at, self.size
        if self._looked_for[:2] != asked:
            self._looked_for = *asked, self._has_message(at)
        return self._looked_for[2]

    def _has_message(self, at: int) -> bool:
        """Whether the bytes from `at` on hold a whole message, or what the collator will refuse."""
        framing = self._framing
        rest = self.size - at
        if rest > framing.max_message_bytes + PREFIX_BYTES:
            return True
        for limit in (HEAD_BYTES, rest):
            data = os.pread(self.fd, min(limit, rest), at)
            if framing.walk(data, 0, len(data), most=1)[0]:
                return True
        try:
            framing.missing(data, 0, len(data))
        except FramingError:
            return True
        return False

    def anchor(self, acked: int) -> None:
        """See `Source`: never asked for."""

    def discard(self, position: int) -> None:
        """See `Source`: files keep what they have."""

    def tidy(self) -> None:
        """See `Source`: nothing is written here."""

    def read(self, position: int, limit: int) -> bytes:
        """See `Source`. Raises `ReplacedError` when what was read before it is no longer there."""
        inserted = self._inserted
        if inserted is not None and position == inserted:
            return self._framing.terminator
        if inserted is not None and position < inserted:
            limit = min(limit, inserted - position)
        at = self.offset(position)
        if at >= self.size:
            return self._completion
        if not self.holds(self.tail):
            raise ReplacedError("what was sent last is no longer in it")
        data = os.pread(self.fd, min(limit, self.size - at), at)
        self.tail = Tail(at + len(data), data[-TAIL_BYTES:])
        return data

    def tail_at(self, end: int) -> Tail:
        """The bytes before `end`."""
        count = min(TAIL_BYTES, end)
        return Tail(end, os.pread(self.fd, count, end - count))

    def holds(self, tail: Tail) -> bool:
        """Whether these bytes are where they were. If not, it holds something else, even if it is as long as before."""
        count = len(tail.data)
        return os.pread(self.fd, count, tail.end - count) == tail.data

    def offset(self, position: int) -> int:
        """Where in the file byte `position` of the stream is."""
        return position + self.shift - (self._inserted is not None and position > self._inserted)

    def look(self, sent: int) -> bool:
        """See how long it is now; `sent` bytes of the stream are on their way. Returns whether it has grown."""
        size, known = os.fstat(self.fd).st_size, self.size
        if size != known:
            if self._completion and size > known and self.offset(sent) > known:
                # A terminator was sent that is not in the file: what comes now is another message.
                self.shift -= self._inserted is not None
                self._inserted = known - self.shift
            self.size, self._completion = size, b""
        return size > known

    @property
    def was_continued(self) -> bool:
        """Whether a process has appended to a last line after it was completed and sent."""
        return self._inserted is not None

    def finish(self, acked: int) -> int:
        """Complete a last line that has no terminator: no process will write to the file again.

        Returns how many bytes at the end are no message, and can't be completed to one.
        """
        at = self.offset(acked)
        if self._framing.terminator:
            if at <= self.size and not self.is_whole:
                self._completion = self._framing.terminator
            return 0
        rest = self.size - at
        if not 0 < rest <= self._framing.max_message_bytes:
            return 0
        data = os.pread(self.fd, rest, at)
        return rest if self._framing.walk(data, 0, rest)[1] == 0 else 0

    @property
    def is_whole(self) -> bool:
        """Whether its last line has its end, or it has none; always with other framings."""
        return not self.size or not self._framing.terminator or self._byte(self.size - 1) == self._framing.terminator

    def first_message(self) -> bytes | None:
        """Its first message, also one that will be refused; None while it is not complete."""
        data, end = b"", 0
        for limit in (HEAD_BYTES, self._framing.max_message_bytes + PREFIX_BYTES):
            data = os.pread(self.fd, min(limit, self.size), 0)
            end = self._framing.walk(data, 0, len(data), most=1)[0]
            if end or len(data) == self.size:
                break
        if end:
            return data[:end]
        if data:
            try:
                self._framing.missing(data, 0, len(data))
            except FramingError:
                return data
        return data + self._completion if self._completion else None

    def is_boundary(self, offset: int) -> bool:
        """Whether a message can end at `offset`: where a line ends, or one after a last line without terminator."""
        terminator = self._framing.terminator
        if not terminator or not offset:
            return offset <= self.size
        if offset == self.size + 1:
            return not self.is_whole
        return self._byte(offset - 1) == terminator

    def _byte(self, offset: int) -> bytes:
        return os.pread(self.fd, 1, offset)

    def beginning(self) -> bytes:
        """Its first bytes: if they change, the inode belongs to another file."""
        return os.pread(self.fd, 1024, 0)

    def has_writer(self) -> bool | None:
        """Whether any process has it open for writing; None where the kernel won't say.

        A read lease is the test: the kernel grants it only while no process has the file open for writing.
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:
            return None  # another user's file, or a network file system
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
