"""The index of a daemon: which file it is, when it is begun again, and what happens while it can't be written.

A file that can't be used, or belongs to another stream, is set aside: renamed to FILE.index.old, and begun again.
Entries that can't be written are kept in memory, and written when that works again.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from indexer.file import IndexFile
from indexer.paths import free_name, is_default, refuse_companion
from tailsrv_formats.errors import reason
from tailsrv_formats.index_file import Header
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from indexer.options import Options
    from tailsrv_formats.framing import Framing
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

RETRY_SECONDS: Final = 1.0
"""Seconds between attempts to write the index, or to read the stream, after one that failed."""


class IndexStore:
    """The one writer of an index file."""

    def __init__(
        self, reactor: Reactor, options: Options, framing: Framing, log: Log, on_writable: Callable[[], None]
    ) -> None:
        """Open the index, and keep its entries if it was made with these options, whatever the stream is.

        ``on_writable()`` is called when the index can be written again. Raises `FatalError`, and `UsageError` if the
        path is that of FILE or of a file beside it.
        """
        self._reactor = reactor
        self._options = options
        self._framing = framing
        self._log = log
        self._on_writable = on_writable
        self._retry: Timer | None = None  # pending while entries wait in memory
        self.set_asides = 0
        """How often an index was set aside."""
        self.repaired = 0
        """How many entries were written again."""
        refuse_companion(options.file, options.index)
        self._is_default = is_default(options.file, options.index)
        self.file = IndexFile(options.index, self._new_header())
        try:
            self._open()
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        """Close the index, and release its lock."""
        if self._retry is not None:
            self._retry.cancel()
        self.file.close()

    def is_same_file(self, fd: int) -> bool:
        """Whether this descriptor is of the index itself."""
        index = self.file.fileno()
        try:
            return index >= 0 and os.path.samestat(os.fstat(fd), os.fstat(index))
        except OSError:
            return False  # one of the two can't be used at the moment; reading it will say so

    # --- beginning

    def _open(self) -> None:
        if self.file.is_empty():
            self._begin()
            return
        why = self._why_unusable()
        if why is not None:
            self.set_aside(why, at_start=True)

    def _why_unusable(self) -> str | None:
        """Why the index can't be used; None if it can. Raises `FatalError` if the file may be somebody else's."""
        file = self.file
        try:
            is_index = file.is_index()
            loaded = is_index and file.load()
        except OSError as error:
            if not self._is_default:
                raise FatalError(
                    f"cannot read the index {file.path}: {reason(error)}; check the disk, or remove the file"
                ) from None
            return f"cannot be read: {reason(error)}"
        # FILE.index belongs to the indexer by its name, whatever it holds. Any other file may be somebody's.
        if not is_index and not self._is_default:
            raise FatalError(
                f"{file.path} is not an index, or its first bytes are damaged; nothing was changed: "
                "remove it if it was an index, or choose another path with --index"
            )
        if self._options.rebuild:
            return "--rebuild"
        if not loaded:
            return "its header is damaged" if is_index else "not an index"
        header = file.header
        if header.framing != self._framing.name or header.interval != self._options.interval_bytes:
            return f"made with --framing {header.framing} --interval-bytes {header.interval}"
        return None

    def set_aside(self, why: str, *, at_start: bool = False) -> None:
        """Rename the index to a free name, and begin a new one."""
        name = free_name(self._options.file, self.file.path)
        renamed = self.file.set_aside(name, at_start=at_start)
        self.set_asides += 1
        facts = (
            {"advice": "no copy was kept; remove older copies to have one kept the next time"} if name is None else {}
        )
        self._log.warning("index set aside", index=self._options.index, renamed=renamed, because=why, **facts)
        self._begin()

    def _begin(self) -> None:
        # Only its first bytes show that a file of another name is an index: a power cut must not take them.
        self.file.begin(self._new_header(), durable=not self._is_default)
        self._retry_if_unwritten()

    def _new_header(self) -> Header:
        return Header(self._framing.name, self._options.interval_bytes, time.time_ns())

    # --- writing

    def append(self, packed: bytes) -> None:
        """Add entries; see `IndexFile.append`."""
        self.file.append(packed)
        self._retry_if_unwritten()

    def identify(self, header: Header) -> None:
        """Write the header that says which stream the index is of."""
        self.file.identify(header)
        self._retry_if_unwritten()

    def cut(self, count: int, why: str | None = None) -> None:
        """Drop all entries but the first `count`; they are made again."""
        cut = self.file.count + self.file.ahead - count
        facts = {} if why is None else {"because": why}
        self._log.warning("index repaired", index=self.file.path, cut=cut, **facts)
        self.file.cut(count)
        self._retry_if_unwritten()

    def _retry_if_unwritten(self) -> None:
        if self.file.write_error is not None and self._retry is None:
            file = self.file
            self._log.warning("index write failed", index=file.path, error=file.write_error, advice=file.advice)
            self._retry = self._reactor.call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self.file.flush()
        if self.file.write_error is not None:
            self._retry = self._reactor.call_later(RETRY_SECONDS, self._try_again)
            return
        self._retry = None
        self._log.info("index write resumed", index=self.file.path)
        self._on_writable()

    # --- reporting

    def report_repaired(self, entries: int, why: str) -> None:
        """Count entries that were written again."""
        self.repaired += entries
        self._log.warning("index repaired", index=self.file.path, entries=entries, because=why)

    def report_ahead(self, end: int) -> None:
        """Some entries are ahead of the stream's committed end: they wait for it."""
        self._log.info("index ahead of the stream", index=self.file.path, end=end, entries=self.file.ahead)

    def problems(self) -> Iterator[str]:
        """Why the index is not up to date."""
        if self.file.write_error is not None:
            yield f"cannot write the index {self.file.path}: {self.file.write_error}; {self.file.advice}"
