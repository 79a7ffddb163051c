"""A store that outlives its process. Its file is described in `tailsrv_client.spoolfile`.

Its messages are in the kernel's hands when `append` returns: a kill loses none; a power cut may lose the last ones.

What takes as long as a disk does, the syncs and the rewriting of the file without what is acknowledged, happens in
`tidy` and `close` alone. Everything else may go on meanwhile, in other threads: the new file is written next to the
old one, and appends wait only while what came since is copied and the names are exchanged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import weakref
from typing import TYPE_CHECKING, Final

from tailsrv_client import durable_files
from tailsrv_client.errors import CheckpointError
from tailsrv_client.spoolfile import BASE_BYTES, HEADER_BYTES, Header, SpoolFile, decode_header, encode_header
from tailsrv_formats.errors import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_formats.framing import Framing

LOG = logging.getLogger("tailsrv_client")

COMPACT_BYTES: Final = 4 << 20
"""Acknowledged bytes for whose sake a spool is rewritten."""

SWAP_BYTES: Final = 1 << 18
"""Appends wait at most until so much is copied."""

RECENT_BYTES: Final = 1 << 20
"""How much of what was appended is also kept in memory, until it is read."""

_OPEN: Final = weakref.WeakSet["Spool"]()


class Spool:
    """A `Store` in the file `path`, ours alone until `close`; one name and one framing a file. Thread-safe.

    With `load=False` making one does not read the file's messages: `load` does, before anything else is called.
    Raises `CheckpointError` for a file that can't be used, whatever the reason.
    """

    def __init__(self, path: str, name: str, framing: Framing, *, load: bool = True) -> None:
        self.path = path
        self.base: int | None = None
        self.start: int = 0
        self.end: int = 0
        self._name, self._framing = name, framing
        self._lock = threading.Lock()
        self._tidying = threading.Lock()
        self._file: SpoolFile | None = None
        self._closing = False
        self.anchored: bool = True
        """Whether `base` is durable, or not known."""
        self._named = True
        self._compact_at = 0
        self._read: tuple[int, bytes] = (0, b"")
        """What was read last, and its position."""
        self._recent: list[bytes] = []
        self._recent_bytes = 0
        """What was appended last and not read yet: a reader that keeps up needs no file."""
        self._descriptor = self._claim()
        _OPEN.add(self)
        try:
            with self._explained("use"):
                self._header, self._file = self._open()
            if load:
                self.load()
        except BaseException:
            self._release()
            raise

    def load(self) -> None:
        """Read what is there, or create the file. Raises `CheckpointError`."""
        with self._tidying, self._explained("use"):
            if self._closing:
                raise CheckpointError(f"the spool {self.path} is closed")
            if self._file is None:
                self._file = self._create(None, 0)
                self._sync_directory()
            elif self._header.version == 1:
                self._convert(self._file)
            else:
                torn = self._file.load()
                if torn is not None:
                    LOG.warning("the spool %s was cut off by a crash: %s; all before that is kept", self.path, torn)
            self.base = self._header.base
            self.end = self._file.end

    def append(self, data: bytes) -> None:
        """See `Store`. Raises `OSError`; nothing of `data` is kept then."""
        with self._lock:
            file = self._usable()
            try:
                file.append(data)
            except OSError:
                with contextlib.suppress(OSError):  # the next append tries it again
                    file.repair()
                raise
            self.end = file.end
            self._recent.append(data)
            self._recent_bytes += len(data)
            if self._recent_bytes > RECENT_BYTES:
                self._recent, self._recent_bytes = [], 0

    def read(self, position: int, limit: int) -> bytes | memoryview:
        """See `Store`. Raises `CheckpointError` for what was damaged since it was written."""
        start, data = self._read
        if not start <= position < start + len(data):
            with self._lock:
                file = self._usable()
                if position >= file.end:
                    return b""
                recent = file.end - self._recent_bytes
                if position >= recent:
                    self._read = start, data = recent, b"".join(self._recent)
                    self._recent, self._recent_bytes = [], 0
                else:
                    self._read = start, data = file.messages(position)
        return memoryview(data)[position - start : position - start + limit]

    def discard(self, position: int) -> None:
        """See `Store`. `tidy` gives the space back."""
        self.start = position

    def anchor(self, base: int) -> None:
        """See `Store`. `tidy` makes it durable."""
        self.base = base
        self.anchored = False

    @property
    def untidy(self) -> bool:
        """Whether `tidy` has something to do."""
        return not (self.anchored and self._named) or self.start >= self._next_compaction()

    def tidy(self) -> None:
        """Make the anchor durable; rewrite the file when what is acknowledged has become the larger part of it.

        Raises `OSError` when the anchor can't be made durable; there is none then. May take as long as the disk does.
        """
        if not self.untidy:
            return
        with self._tidying:
            file = self._file
            if self._closing or file is None:
                return
            if not self.anchored:
                self._write_base(file)
            if not self._named:
                self._sync_directory()
            if self.start >= self._next_compaction():
                # It only saves space: where there is none it is tried again when there is more to save.
                self._compact_at = self.start + COMPACT_BYTES
                self._rewrite(file)

    def close(self) -> None:
        """Let another process have it. What is acknowledged leaves the file, if that costs little. Raises nothing."""
        self._closing = True  # a rewrite in another thread gives up
        with self._tidying:
            try:
                file = self._file
                if file is not None and file.first < self.start and self.end - self.start <= COMPACT_BYTES:
                    self._closing = False
                    self._rewrite(file)
            except CheckpointError as error:
                LOG.warning("%s", error)  # the next one that opens it will say so, too
            finally:
                self._closing = True
                self._release()

    # --- opening

    def _claim(self) -> int:
        with self._explained("lock"):
            return durable_files.lock(self.path)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            text = str(error)
            raise CheckpointError(text if self.path in text else f"the spool {self.path}: {text}") from None
        except OSError as error:
            named = f"{error.filename}: " if isinstance(error.filename, str) and error.filename != self.path else ""
            raise CheckpointError(
                f"cannot {what} the spool {self.path}: {named}{reason(error)};"
                " a spool is a regular file in a directory that its producer may write to"
            ) from None

    def _open(self) -> tuple[Header, SpoolFile | None]:
        header = Header(2, self._name, self._framing.name, 0, None, 0)
        try:
            # Without waiting for the other end of a FIFO.
            fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return header, None
        try:
            header = self._check(fd)
        except BaseException:
            os.close(fd)
            raise
        return header, SpoolFile(self.path, fd, header.seed, begin=header.size, first=0)

    def _check(self, fd: int) -> Header:
        """The header of the open file. Raises `CheckpointError` if this is not our spool."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError("it is not a regular file")
        header = decode_header(os.pread(fd, HEADER_BYTES + 2 * BASE_BYTES, 0))
        if (header.name, header.framing) != (self._name, self._framing.name):
            raise CheckpointError(
                f"{self.path} is the spool of {header.name!r} with {header.framing} framing, not of {self._name!r}"
                f" with {self._framing.name}; a spool serves one producer: choose another file"
            )
        return header

    def _create(self, base: int | None, first: int, *, rename: bool = True) -> SpoolFile:
        """A file without messages, whose first one will be at position `first`; `rename`: under its final name."""
        seed = int.from_bytes(os.urandom(4))
        header = encode_header(self._name, self._framing.name, seed, base)
        fd = durable_files.begin(self.path, header)
        try:
            if rename:
                os.fdatasync(fd)
                os.rename(f"{self.path}.new", self.path)
        except BaseException:
            os.close(fd)
            durable_files.discard(self.path)
            raise
        return SpoolFile(self.path, fd, seed, begin=len(header), first=first)

    def _convert(self, old: SpoolFile) -> None:
        """Make format 2 of format 1, which has no checksums and no records."""
        from tailsrv_client.spoolv1 import messages  # noqa: PLC0415 - needed once in a spool's life

        new = self._create(self._header.base, 0, rename=False)
        try:
            for piece in messages(old, self._framing.name):
                new.append(piece)
            os.fdatasync(new.fd)
            os.rename(f"{self.path}.new", self.path)
        except BaseException:
            new.close()
            durable_files.discard(self.path)
            raise
        self._file = new
        old.close()
        self._sync_directory()

    # --- tidying

    def _next_compaction(self) -> int:
        file = self._file
        if file is None:
            return self.end + 1
        return max(file.first + max(COMPACT_BYTES, self.end - self.start), self._compact_at)

    def _write_base(self, file: SpoolFile) -> None:
        base = self.base
        assert base is not None  # noqa: S101 - `anchor` has set it
        try:
            file.write_base(base)
        except OSError as error:
            self.base = None
            self.anchored = True
            raise OSError(error.errno, f"cannot write the spool {self.path}: {reason(error)}") from error
        self.anchored = True

    def _rewrite(self, old: SpoolFile) -> None:
        """Write the file without what is acknowledged. A full disk, or `close`, leaves the old one in use."""
        try:
            new = self._create(None if self.base is None else self.base + self.start, self.start, rename=False)
        except OSError as error:
            self._postponed(error)
            return
        try:
            self._copy(old, new)
        except OSError as error:
            self._abandon(new)
            self._postponed(error)
        except BaseException:
            self._abandon(new)
            raise
        else:
            if self._file is new:
                old.close()
                self._sync_directory()
            else:
                self._abandon(new)

    def _copy(self, old: SpoolFile, new: SpoolFile) -> None:
        synced = False
        while not self._closing:
            if old.end - new.end > SWAP_BYTES or not synced:
                if new.end < old.end:
                    self._copy_next(old, new)
                if new.end == old.end or old.end - new.end <= SWAP_BYTES:
                    os.fdatasync(new.fd)
                    synced = True
                continue
            with self._lock:
                if old.end - new.end > SWAP_BYTES:
                    continue
                while new.end < old.end:
                    self._copy_next(old, new)
                os.rename(f"{self.path}.new", self.path)
                # The name is the new file's from here on, so this is the one to append to, whatever fails now.
                self._file, self._named = new, False
                return

    def _copy_next(self, old: SpoolFile, new: SpoolFile) -> None:
        start, data = old.messages(new.end)
        new.append(data[new.end - start :])

    def _abandon(self, new: SpoolFile) -> None:
        new.close()
        durable_files.discard(self.path)

    def _postponed(self, error: OSError) -> None:
        LOG.warning(
            "spool %s not compacted (%s); it keeps acknowledged messages until a later attempt",
            self.path,
            reason(error),
        )

    def _sync_directory(self) -> None:
        try:
            durable_files.sync_directory(self.path)
        except OSError as error:
            # Both files are good spools, so a power cut may bring back the old one; the next `tidy` tries again.
            self._named = False
            LOG.warning("directory of the spool %s not synced (%s); retrying", self.path, reason(error))
        else:
            self._named = True

    def _usable(self) -> SpoolFile:
        if self._file is None:
            raise CheckpointError(f"the spool {self.path} is closed; after a fork it is the parent's")
        return self._file

    def _release(self) -> None:
        """Close what is open. Each descriptor is forgotten first, so that a fork meanwhile closes none twice."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _leave_to_parent() -> None:
    """In a forked child: the parent continues to write the file, and the child must not keep its lock."""
    for spool in list(_OPEN):
        spool._closing = True  # noqa: SLF001 - ours
        spool._lock, spool._tidying = threading.Lock(), threading.Lock()  # noqa: SLF001 - held by threads that are not here
        spool._release()  # noqa: SLF001


os.register_at_fork(after_in_child=_leave_to_parent)
