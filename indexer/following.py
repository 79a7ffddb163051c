"""Keeps the index abreast of the stream: reads what has come, numbers it, writes entries, notes arrivals.

A small piece is walked at once, in the loop; what would take long is left to workers (`building`), and what they find
is joined here. In both cases queries are answered from what is known so far.

What does not fit the stream is cut off the index, and read again. An index that does not belong to the stream at all,
or a stream that contradicts what was read of it, is not argued with: the index is set aside, and another one is begun.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from indexer.building import Builder
from indexer.file import COPIES, IndexFile
from indexer.format import Entry, Header, MismatchError
from indexer.identity import cut_before, disagreement, fits, identify
from indexer.lookup import Arrivals, Lookup
from indexer.options import SUFFIX
from indexer.segments import Found, Joiner
from indexer.walker import RewrittenError, Walker
from tailsrv.kit.errors import FatalError, reason
from tailsrv.kit.shortage import spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from collator.framing import Framing
    from indexer.options import Options
    from tailsrv.kit.logs import Log
    from tailsrv.kit.reactor import Reactor, Timer

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

RETRY_SECONDS: Final = 1.0
"""How soon writing the index is tried again when there was no room for it, and reading a stream that can't be read."""

OFFSET_LIMIT: Final = 1 << 62
"""No stream has so many bytes."""


class Follower:
    """The index of one stream. The stream is told by `attach` and `advance`."""

    def __init__(self, reactor: Reactor, options: Options, framing: Framing, log: Log) -> None:
        self._reactor = reactor
        self._options = options
        self._framing = framing
        self._log = log
        self.fd = -1
        """The stream."""
        self.end = 0
        """How far it may be read."""
        self.size = 0
        """How many bytes its file has."""
        self.unreadable: str | None = None
        """Why the stream can't be read at the moment."""
        self.index = IndexFile(options.index)
        self.walker: Walker
        self.arrivals: Arrivals
        self.lookup: Lookup
        self.live = False
        """Whether all that there was has been read: what comes now is seen to arrive."""
        self.behind_since: float | None = None
        """When there was something to read that has not been read yet, in seconds of the monotonic clock."""
        self.rebuilt = 0
        """How often an index was set aside."""
        self.progress: Callable[[int, int], None] = lambda _boundary, _end: None
        """Told how far what there was has been read, and how far it goes, in bytes."""
        self._builder: Builder | None = None
        self._alone_until = 0  # workers got nowhere: the loop walks up to this byte by itself
        self._posted = False
        self._retry: Timer | None = None
        self._read_retry: Timer | None = None
        self._is_identified = False  # whether the index has been compared with this stream
        self._told_nonsense = False

    def close(self) -> None:
        """Give back the index, and end the workers."""
        self._stop_building()
        for timer in (self._retry, self._read_retry):
            if timer is not None:
                timer.cancel()
        self.index.close()

    # --- beginning

    def open(self) -> None:
        """Take up the index that there is if it is one of these options, whatever the stream may be.

        Raises `FatalError` for a file that is no index, unless it has the name that indexes have by default.
        """
        if self.index.is_foreign() and self._options.index != self._options.file + SUFFIX:
            raise FatalError(
                f"{self._options.index} is not an index of tailsrv-index, and is left alone; remove it, or name another"
                " file with --index"
            )
        if self._options.rebuild and not self.index.is_empty():
            self._set_aside("--rebuild")
        elif self.index.is_empty():
            self._begin()
        elif not self.index.load():
            self._set_aside("it is damaged, or no index")
        else:
            header = self.index.header
            assert header is not None  # noqa: S101 - for the type checker: it was loaded
            if header.framing != self._framing.name or header.interval != self._options.interval_bytes:
                self._set_aside(f"it was made with --framing {header.framing} --interval-bytes {header.interval}")
            else:
                self._resume()

    def attach(self, fd: int, end: int, size: int) -> None:
        """The stream is there; see `advance`. An index that is not this stream's is set aside."""
        self._stop_building()
        self.fd = fd
        self.live = self._is_identified = False
        self._alone_until = 0
        self._advance(end, size, ATTACH_SECONDS)

    def _identify(self) -> None:
        """Compare the index with the stream."""
        entries = self.index.count
        why = disagreement(self.index, self.read, self.size)
        if self.index.count < entries:
            self._log.warning("index repaired", index=self.index.path, cut=entries - self.index.count)
        if why is None:
            self._hide_early()
            why = self._last_cell()
        if why is not None:
            self._set_aside(why)
        self._is_identified = True

    def _hide_early(self) -> None:
        """Go on at the last entry up to the stream's end: the commit mark may be older than the index."""
        self.index.hide(self.index.find_offset(self.end) + 1)
        self._resume()

    def _last_cell(self) -> str | None:
        """Why the last entry's number, with which all further ones begin, can't be right."""
        try:
            self.lookup.check_file()
            self.lookup.check(self.index.count - 2)
        except MismatchError as error:
            return str(error)
        return None

    def move(self, fd: int) -> None:
        """The same stream, by another descriptor; the one before may be closed."""
        self.fd = fd

    def start_over(self, why: str) -> None:
        """Set the index aside and begin another one."""
        self._stop_building()
        self.live = False
        self._alone_until = 0
        self._set_aside(why)
        self.advance(self.end, self.size)

    def repair(self, why: str) -> None:
        """An answer met a contradiction, `why`: cut off what is damaged and read the stream again from there.

        If none of the entries that the search has looked at is damaged by itself, the index is set aside.
        """
        if self.fd < 0:
            return
        index = self.index
        seed = index.header.seed() if index.header is not None else 0
        entries, probed = index.count, sorted(set(index.probed))
        try:
            index.shorten()
            bad = next(
                (
                    position
                    for position in probed
                    if position >= index.count or not fits(index, position, seed, self.read, self.size)
                ),
                None,
            )
            repaired = bad is not None and cut_before(index, min(bad, index.count), self.read, self.size)
        except (MismatchError, OSError):
            repaired = False
        if not repaired:
            self.start_over(why)
            return
        self._stop_building()
        self.live = False
        self._alone_until = 0
        self._log.warning("index repaired", index=index.path, cut=entries - index.count, because=why)
        self._resume()
        again = self._last_cell()
        if again is not None:
            self._set_aside(again)
        self.advance(self.end, self.size)

    def _set_aside(self, why: str) -> None:
        renamed = self.index.set_aside()
        self.rebuilt += 1
        facts = {"renamed": renamed} if renamed is not None else {"advice": f"remove older copies: {COPIES} are kept"}
        self._log.warning("index set aside", index=self._options.index, because=why, **facts)
        self._begin()

    def _begin(self) -> None:
        self.index.begin(Header(self._framing.name, self._options.interval_bytes, time.time_ns()))
        self._resume()

    def _resume(self) -> None:
        """Go on behind the last entry."""
        header = self.index.header
        assert header is not None  # noqa: S101 - for the type checker: it has begun
        last = self.index.entry(self.index.count - 1)
        self._walk_from(last)
        self.arrivals = Arrivals()
        self.arrivals.add(last)
        self.lookup = Lookup(self._framing, self.index, self.arrivals, header.seed(), self.read)
        self._told_nonsense = False

    # --- following

    def read(self, offset: int, count: int) -> bytes:
        """As many of the stream's bytes as there are. Raises `OSError`."""
        # An offset may come from a damaged entry.
        return os.pread(self.fd, count, offset) if self.fd >= 0 and offset < OFFSET_LIMIT else b""

    def advance(self, end: int, size: int) -> None:
        """The stream ends at `end` now, and its file at `size`: read on, for as long as a turn may take."""
        self._advance(end, size, TURN_SECONDS)

    def catch_up(self) -> None:
        """Read on for somewhat longer: a client asks, and what it asks for may be among what was just appended."""
        if self.live and self.is_behind():
            self._advance(self.end, self.size, CATCH_UP_SECONDS)

    def _advance(self, end: int, size: int, seconds: float) -> None:
        before, self.end, self.size = self.end, end, size
        try:
            if not self._is_identified:
                self._identify()
            self._follow(before, seconds)
        except OSError as error:
            self._wait_until_readable(error)
            return
        if self.unreadable is not None:
            self.unreadable = None
            self._log.info("stream readable again", file=self._options.file)

    def _follow(self, before: int, seconds: float) -> None:
        known, end = self.arrivals.last(), self.end
        if self.size < known.offset:
            self.start_over(f"the stream shrank to {self.size} bytes, {known.offset} had been indexed")
            return
        if end < known.offset:
            # A commit mark that goes back: what lies beyond is there, and counts again when it is committed.
            self._stop_building()
            self.live = False
            self._hide_early()
        elif end < before:
            # Nothing that was answered is gone, but what had been read of the next message may be another's now.
            self._stop_building()
            self._walk_from(known)
        if self._builder is not None:
            return
        if self._is_far() and self._build():
            return
        try:
            self._read_on(seconds)
        except RewrittenError:
            self.start_over(f"the stream has other bytes before offset {self.walker.boundary} than were read there")

    def _wait_until_readable(self, error: OSError) -> None:
        if self.unreadable is None:
            self._log.error(
                "stream unreadable",
                file=self._options.file,
                offset=self.arrivals.last().offset,
                error=reason(error),
                advice="what was indexed before is answered; check the disk",
            )
        self.unreadable = reason(error)
        self.live = False
        if self._read_retry is None:
            self._read_retry = self._reactor.call_later(RETRY_SECONDS, self._read_again)

    def _read_again(self) -> None:
        self._read_retry = None
        self._walk_from(self.arrivals.last())
        self._go_on()

    def _is_far(self) -> bool:
        far = self.end - self.walker.position > FAR_BYTES and self.is_behind()
        return far and self.arrivals.last().offset >= self._alone_until and not self.index.is_full()

    def is_behind(self) -> bool:
        """Whether there is something to read that could be read."""
        return self.end >= self.walker.wanted and self.walker.nonsense is None

    def _read_on(self, seconds: float) -> None:
        walker, deadline = self.walker, time.monotonic() + seconds
        while self.is_behind() and not self.index.is_full():
            size = min(PIECE_BYTES, self.end - walker.position)
            data = self.read(walker.position, size)
            raw = walker.feed(data)
            self._note(raw, walker.number, walker.boundary, exact=self.live)
            if len(data) < size:
                return  # it has just been cut: the event is on its way
            if time.monotonic() > deadline:
                break
        if not self.is_behind():
            self._caught_up()
            return
        self._lag()
        if not self.index.is_full() and not self._posted:
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
            self.progress(self.arrivals.last().offset, self.end)

    def _go_on(self) -> None:
        self._posted = False
        if self.fd >= 0:
            self.advance(self.end, self.size)

    # --- building

    def _build(self) -> bool:
        """Let workers walk what there is. Returns whether they do."""
        header, known = self.index.header, self.arrivals.last()
        assert header is not None  # noqa: S101 - for the type checker: it has begun
        joiner = Joiner(self._framing, header.interval, known.offset, known.number)
        try:
            with spare_descriptors():
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
            self._log.warning("no workers", error=reason(error), advice="the index is built more slowly without")
            return False
        self.live = False
        self._log.info("indexing", file=self._options.file, begin=known.offset, end=self.end)
        self._lag()
        return True

    def _on_found(self, joiner: Joiner, found: Found) -> bool:
        raw = joiner.join(found)
        self._note(raw or (), joiner.number, joiner.boundary, exact=False)
        self._lag()
        return raw is not None and not found.impossible and not self.index.is_full()

    def _on_built(self, begin: int) -> None:
        """The workers are done, or got as far as they could; the rest is for the loop."""
        self._builder = None
        known = self.arrivals.last()
        if known.offset - begin < FAR_BYTES:
            # A worker that died, or a message that none of them can see the end of: others would not fare better here.
            self._alone_until = known.offset + FAR_BYTES
        self._walk_from(known)
        self._log.info("indexed", file=self._options.file, end=known.offset, messages=known.number)
        self.advance(self.end, self.size)

    def _stop_building(self) -> None:
        if self._builder is not None:
            self._builder.stop()
            self._builder = None
            self._walk_from(self.arrivals.last())

    def _walk_from(self, known: Entry) -> None:
        header = self.index.header
        assert header is not None  # noqa: S101 - for the type checker: it has begun
        self.walker = Walker(self._framing, header.interval, header.seed(), known.offset, known.number)

    # --- what is known

    def _note(self, raw: Sequence[int], number: int, boundary: int, *, exact: bool) -> None:
        """Put down what was found: entries, and that the messages before `boundary` are there."""
        last = self.arrivals.last()
        if number == last.number:
            return
        now = max(time.time_ns(), last.time)  # a clock that is set back stands still here
        if raw:
            if not self.index.count:
                header = self.index.header
                assert header is not None  # noqa: S101 - for the type checker: it has begun
                self.index.identify(identify(header, self.read))
            self.index.append(raw, now, exact=exact)
            if self.index.trouble is not None:
                self._retry_later()
        self.arrivals.add(Entry(number, boundary, now, exact))

    # --- trouble

    def _tell_nonsense(self) -> None:
        if self.walker.nonsense is not None and not self._told_nonsense:
            self._told_nonsense = True
            self._log.error(
                "stream makes no sense",
                file=self._options.file,
                offset=self.walker.boundary,
                number=self.walker.number,
                error=self.walker.nonsense,
                advice="what lies before is answered; is --framing right?",
            )

    def _retry_later(self) -> None:
        if self._retry is None:
            self._log.warning("index not written", index=self.index.path, error=self.index.trouble, advice="make room")
            self._retry = self._reactor.call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self.index.flush()
        if self.index.trouble is not None:
            self._retry = self._reactor.call_later(RETRY_SECONDS, self._try_again)
            return
        self._retry = None
        self._log.info("index written again", index=self.index.path)
        if self.fd >= 0:
            self.advance(self.end, self.size)
