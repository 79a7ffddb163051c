"""A file that is being followed: who it is, and its bytes as a lane's source.

Its name as a producer is who it is: host, path and inode, with the inode's generation where the file system has one,
because a deleted file's number is soon given to the next one. So what the collator has acknowledged under that name
is how far this very file was sent, and nothing needs to be kept here.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collator.framing import Framing

FS_IOC_GETVERSION: Final = 0x80087601
"""_IOR('v', 1, long) of linux/fs.h: an inode's generation."""

NAME_PART_CHARACTERS: Final = 40

ROTATED: Final = re.compile(r"[.-](?:\d[\d.T:_-]*|old)(?!.*\.(?:gz|xz|bz2|zst|lz4)$)$")
"""What logrotate and its like append to a name; not what was compressed since."""


class Identity(NamedTuple):
    """Which file it is, whatever it is called."""

    device: int
    inode: int
    generation: int | None


def identify(fd: int) -> Identity:
    """Who the open file is."""
    status = os.fstat(fd)
    try:
        (generation,) = struct.unpack("L", fcntl.ioctl(fd, FS_IOC_GETVERSION, bytes(8)))
    except OSError:
        generation = None  # tmpfs, network file systems: they don't give numbers again soon
    return Identity(status.st_dev, status.st_ino, None if generation is None else generation & 0xFFFFFFFF)


def base_name(path: str, host: str) -> str:
    """The part of a producer's name that stands for host and path: 1 to 90 characters that a name may have."""
    path = os.path.abspath(path)
    shown = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path))[:NAME_PART_CHARACTERS]
    host = re.sub(r"[^A-Za-z0-9._-]", "_", host)[:NAME_PART_CHARACTERS]
    return f"{host}:{shown}-{zlib.crc32(os.fsencode(path)):08x}"


def producer_name(base: str, identity: Identity, life: int) -> str:
    """The name for one file. `life`: how often it is known to have been truncated in place."""
    name = f"{base}:{identity.inode}"
    if identity.generation is not None:
        name += f".{identity.generation:x}"
    return f"{name}:t{life}" if life else name


def rotated_names(path: str) -> list[str]:
    """What is there beside `path` that rotation may have made of it, the oldest first."""
    directory, own = os.path.split(os.path.abspath(path))
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            suffix = entry.name.removeprefix(own)
            if suffix != entry.name and ROTATED.fullmatch(suffix) and entry.is_file(follow_symlinks=False):
                found.append((entry.stat().st_mtime_ns, _age(suffix), entry.path))
    return [name for _, _, name in sorted(found)]


def _age(suffix: str) -> tuple[int, str]:
    """For files written within one tick of the clock: .2 is older than .1, and 20260101 than 20260102."""
    digits = suffix[1:]
    return (-int(digits), "") if digits.isdigit() and len(digits) < 6 else (0, suffix)


class FollowedFile:
    """An open file as a `Source`: byte N of the producer's stream is byte N of the file."""

    start = 0
    anchored = True

    def __init__(self, fd: int, framing: Framing) -> None:
        self.fd = fd
        self.identity = identify(fd)
        self.size = os.fstat(fd).st_size
        self._framing = framing
        self._completion = b""

    @property
    def end(self) -> int:
        """See `Source`."""
        return self.size + len(self._completion)

    def anchor(self, acked: int) -> None:
        """See `Source`: never asked for."""

    def discard(self, position: int) -> None:
        """See `Source`: files keep what they have."""

    def tidy(self) -> None:
        """See `Source`: nothing is written here."""

    def read(self, position: int, limit: int) -> bytes:
        """See `Source`."""
        return (
            os.pread(self.fd, min(limit, self.size - position), position) if position < self.size else self._completion
        )

    def look(self) -> bool:
        """See how long it is now. Returns whether that is more than before."""
        size, before = os.fstat(self.fd).st_size, self.size
        if size != before:
            self.size, self._completion = size, b""
        return size > before

    def finish(self, acked: int) -> int:
        """Nobody will write to it again: complete a last line that has no end.

        Returns how many bytes at the end are no message, and can't be completed to one.
        """
        terminator = self._framing.terminator
        if terminator:
            if self.size and acked <= self.size and os.pread(self.fd, 1, self.size - 1) != terminator:
                self._completion = terminator
            return 0
        rest = self.size - acked
        if not 0 < rest <= self._framing.max_message_bytes:
            return 0
        data = os.pread(self.fd, rest, acked)
        return rest if self._framing.walk(data, 0, rest)[1] == 0 else 0

    def has_writer(self) -> bool | None:
        """Whether any process has it open for writing; None where the kernel won't say.

        It says so to who asks for a read lease: that is granted only while nobody writes.
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:
            return None  # somebody else's file, or a network file system
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)
