"""Keeps the index abreast of the stream: reads what has come, numbers it, writes entries, notes arrivals.

A small piece is walked at once, in the loop; what would take long is left to workers (`building`), and what they find
is joined here. In both cases queries are answered from what is known so far.

An index that does not belong to the stream, or a stream that contradicts what was read of it, is not argued with: the
index is set aside and begun anew. Wrong entries in the right index are repaired (`repair`); where that takes long, the
index is cut before them, and followed from there. Entries that are ahead of the stream wait for it (`file`).

The state of a follower, as far as the stream's file is concerned:

    absent      `fd` is -1. `attach` leads to unverified
    unverified  the index may be another stream's. `_take_up` leads to following, an unreadable stream to suspended
    following   `live` when all that there was has been read. An unreadable place leads to suspended
    suspended   a timer leads back to unverified or following, whichever it was
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final

from indexer.builder import Builder
from indexer.errors import CorruptIndexError, IndexFileError
from indexer.identity import head_mismatch
from indexer.known import RETRY_SECONDS, Known
from indexer.segments import Joiner, SegmentResult
from indexer.walker import RewrittenError, Walker
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.options import Options
    from tailsrv_formats.framing import Framing
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

PIECE_BYTES: Final = 1 << 15
"""Walked at once. A third of a millisecond where messages are of ordinary length."""

TURN_SECONDS: Final = 0.0005
"""How long the loop may be kept from its clients."""

CATCH_UP_SECONDS: Final = 0.005
"""How long at most while a client waits for an answer that depends on the stream's end."""

ATTACH_SECONDS: Final = 0.05
"""How long a start may read on before it listens: a small stream is known from the first query on."""

FAR_BYTES: Final = 16 << 20
"""With more than this to read, workers read it."""

_STALE: Final = frozenset({errno.ESTALE, errno.ENOTCONN, errno.EBADF})
"""The descriptor is good for nothing any more: the file system behind it has been remounted, or its server has."""


class Follower:
    """The index of one stream. The stream is told by `attach` and `advance`."""

    def __init__(self, reactor: Reactor, options: Options, framing: Framing, log: Log) -> None:
        """Take up the index that there is if it is one of these options, whatever the stream may be.

        Raises `FatalError`, and `UsageError` where the index would take the place of a file that is not ours.
        """
        self._reactor = reactor
        self._options = options
        self._framing = framing
        self._log = log
        self.fd = -1
        """The stream."""
        self.end = 0
        """How far it may be read."""
        self.known = Known(reactor, options, framing, log, read=self.read, written=lambda: self.advance(self.end))
        self.walker: Walker
        self.live = False
        """Whether all that there was has been read: what comes now is seen to arrive."""
        self.behind_since: float | None = None
        """When there was something to read that has not been read yet, in seconds of the monotonic clock."""
        self.unreadable: str | None = None
        """Why the stream can't be read at the moment, and where."""
        self.reopen: Callable[[], None] = lambda: None
        """Called when the descriptor is good for nothing any more. `attach` is to follow, now or later."""
        self.progress: Callable[[int, int], None] = lambda _boundary, _end: None
        """Told how far what there was has been read, and how far it goes, in bytes."""
        self._verified = False
        self._is_stale = False
        self._reading_again: Timer | None = None
        self._builder: Builder | None = None
        self._alone_until = 0  # workers got nowhere: the loop walks up to this byte by itself
        self._posted = False
        self._told_nonsense = self._told_no_workers = False
        self._walk_on()

    def close(self) -> None:
        """Close the index, and end the workers."""
        self._stop_building()
        if self._reading_again is not None:
            self._reading_again.cancel()
        self.known.close()

    # --- beginning

    def attach(self, fd: int, end: int) -> None:
        """The stream is there. An index that is not this stream's is set aside."""
        if self._is_index(fd):
            raise FatalError(f"{self._options.file} is the index itself; choose another place with --index")
        self.detach()
        self.fd = fd
        self._advance(end, ATTACH_SECONDS)

    def _is_index(self, fd: int) -> bool:
        index = self.known.index.fileno()
        try:
            return index >= 0 and os.path.samestat(os.fstat(fd), os.fstat(index))
        except OSError:
            return False  # one of the two can't be used at the moment; reading it will say so

    def detach(self) -> None:
        """The stream is not there any more; its descriptor may be closed."""
        self._stop_building()
        self.fd, self.end = -1, 0
        self.live = self._verified = self._is_stale = False
        self._alone_until = 0
        if self._reading_again is not None:
            self._reading_again.cancel()
            self._reading_again = None

    def is_verified(self) -> bool:
        """Whether the index is known to be the stream's, so that it can be asked."""
        return self._verified

    def start_over(self, why: str) -> None:
        """Set the index aside and begin anew."""
        self._stop_building()
        self.live = False
        self._alone_until = 0
        self.known.set_aside(why)
        self._told_nonsense = False
        self._walk_on()
        self.advance(self.end)

    # --- repairing

    def repair(self, error: CorruptIndexError) -> None:
        """Repair the index around the entry that the stream contradicts. Raises `OSError` where it can't be read."""
        why = head_mismatch(self.known.header(), self.read)
        if why is not None:
            self.start_over(why)
            return
        count = self.known.mend(error)
        if count is not None:
            self._cut_back(count, error)

    def give_up(self, error: CorruptIndexError) -> None:
        """The index was repaired, and is contradicted there still: make all that follows again."""
        self._cut_back(self.known.right_before(error), error)

    def _cut_back(self, count: int, error: CorruptIndexError) -> None:
        self._stop_building()
        self.known.cut(count, error)
        self._verified = self.live = False
        self._alone_until = 0
        self.advance(self.end)

    # --- following

    def read(self, offset: int, count: int) -> bytes:
        """As many of the stream's bytes as there are."""
        return os.pread(self.fd, count, offset) if self.fd >= 0 else b""

    def advance(self, end: int) -> None:
        """The stream's file has changed, and ends here now: read on, for as long as a turn may take."""
        self.known.lookup.forget_blocks()
        self._advance(end, TURN_SECONDS)

    def catch_up(self) -> None:
        """Read on for somewhat longer: a client asks, and what it asks for may be among what was just appended."""
        if self.live and self.is_behind():
            self._advance(self.end, CATCH_UP_SECONDS)

    def _advance(self, end: int, seconds: float) -> None:
        before, self.end = self.end, end
        if self.fd < 0 or self._reading_again is not None:
            return
        try:
            self._follow(before, seconds)
        except RewrittenError:
            self.start_over(f"the stream has other bytes before offset {self.walker.boundary} than were read there")
        except OSError as error:
            self._suspend(error)
        else:
            if self.unreadable is not None:
                self.unreadable = None
                self._log.info("stream readable again", file=self._options.file)

    def _follow(self, before: int, seconds: float) -> None:
        if not self._verified:
            self._take_up()
        elif self.end < self.known.arrivals.last().offset:
            self._stop_building()
            self._take_up()
        elif self.end < before:
            # Nothing that was answered is gone, but what had been read of the next message may be another's now.
            self._stop_building()
            self._walk_on()
        if self._builder is not None or (self._is_far() and self._build()):
            return
        self._read_on(seconds)

    def _take_up(self) -> None:
        self.live = self._verified = False
        self.known.take_up(self.fd, self.end)
        self._told_nonsense = False
        self._walk_on()
        self._verified = True

    def met(self, error: OSError) -> None:
        """A look-up met this. Where it says that the descriptor is good for nothing any more, another one is needed."""
        if error.errno in _STALE and not isinstance(error, IndexFileError) and self._reading_again is None:
            self._suspend(error)

    def _suspend(self, error: OSError) -> None:
        """The stream can't be read where it has to be read next: try again later."""
        self._stop_building()
        where = self.walker.position
        self._walk_on()
        self.live = False
        file = error.filename or self._options.file
        self._is_stale = error.errno in _STALE and not isinstance(error, IndexFileError)
        if self.unreadable is None:
            facts = {"error": reason(error), "advice": "check the disk, or the server of the file system"}
            self._log.warning("stream not readable", file=file, offset=where, **facts)
        self.unreadable = f"{file} cannot be read around byte {where}: {reason(error)}"
        self._lag()
        self._reading_again = self._reactor.call_later(RETRY_SECONDS, self._read_again)

    def _read_again(self) -> None:
        self._reading_again = None
        if self._is_stale:
            self._is_stale = False
            self.reopen()
        else:
            self.advance(self.end)

    def _is_far(self) -> bool:
        far = self.end - self.walker.position > FAR_BYTES and self.is_behind()
        return far and self.known.arrivals.last().offset >= self._alone_until and not self.known.index.is_full()

    def is_behind(self) -> bool:
        """Whether there is something to read that has not been read yet."""
        return self.end >= self.walker.wanted and self.walker.framing_error is None

    def is_current(self) -> bool:
        """Whether all that the stream holds is known."""
        return self.live and not self.is_behind()

    def _read_on(self, seconds: float) -> None:
        walker, deadline = self.walker, time.monotonic() + seconds
        while self.is_behind() and not self.known.index.is_full():
            size = min(PIECE_BYTES, self.end - walker.position)
            data = self.read(walker.position, size)
            raw = walker.feed(data)
            self.known.note(raw, walker.number, walker.boundary, exact=self.live)
            if len(data) < size:
                return  # it has just been cut: the event is on its way
            if time.monotonic() > deadline:
                break
        if not self.is_behind():
            self._caught_up()
            return
        self._lag()
        if not self.known.index.is_full() and not self._posted:
            self._posted = True
            self._reactor.post(self._go_on)

    def _caught_up(self) -> None:
        if not self.live:
            self.live = True
            self.progress(self.end, self.end)
        self.behind_since = None
        self._tell_nonsense()

    def _lag(self) -> None:
        if self.behind_since is None:
            self.behind_since = time.monotonic()
        if not self.live:
            self.progress(self.known.arrivals.last().offset, self.end)

    def _go_on(self) -> None:
        self._posted = False
        if self.fd >= 0:
            self.advance(self.end)

    # --- building

    def _build(self) -> bool:
        """Let workers walk what there is. Returns whether they do."""
        header, known = self.known.header(), self.known.arrivals.last()
        joiner = Joiner(self._framing, header.interval, known.offset, known.number)
        try:
            self._builder = Builder(
                self._reactor,
                self.fd,
                self._framing,
                interval=header.interval,
                seed=header.seed(),
                begin=known.offset,
                end=self.end,
                found=lambda found: self._on_found(joiner, found),
                ended=lambda: self._on_built(known.offset),
            )
        except OSError as error:
            self._alone_until = known.offset + FAR_BYTES
            if not self._told_no_workers:
                self._told_no_workers = True
                self._log.warning("no workers", error=reason(error), advice="the index is built more slowly without")
            return False
        self._told_no_workers = False
        self.live = False
        self._log.info("indexing", file=self._options.file, begin=known.offset, end=self.end)
        self._lag()
        return True

    def _on_found(self, joiner: Joiner, found: SegmentResult) -> bool:
        raw = joiner.join(found)
        try:
            self.known.note(raw or (), joiner.number, joiner.boundary, exact=False)
        except OSError:
            return False  # the loop goes on from here, and meets the same
        self._lag()
        return raw is not None and not found.corrupt and not self.known.index.is_full()

    def _on_built(self, begin: int) -> None:
        """The workers are done, or got as far as they could; the rest is for the loop."""
        self._builder = None
        known = self.known.arrivals.last()
        if known.offset - begin < FAR_BYTES:
            # A worker that died, or a message that none of them can see the end of: others would not fare better here.
            self._alone_until = known.offset + FAR_BYTES
        self._walk_on()
        self._log.info("indexed", file=self._options.file, end=known.offset, messages=known.number)
        self.advance(self.end)

    def _stop_building(self) -> None:
        if self._builder is not None:
            self._builder.stop()
            self._builder = None
            self._walk_on()

    def _walk_on(self) -> None:
        """Go on reading behind what is known."""
        header, last = self.known.header(), self.known.arrivals.last()
        self.walker = Walker(self._framing, header.interval, header.seed(), last.offset, last.number)

    # --- trouble

    def _tell_nonsense(self) -> None:
        if self.walker.framing_error is not None and not self._told_nonsense:
            self._told_nonsense = True
            self._log.error(
                "stream makes no sense",
                file=self._options.file,
                offset=self.walker.boundary,
                number=self.walker.number,
                error=self.walker.framing_error,
                advice="what lies before is answered; is --framing right?",
            )
