"""Keeps the index up to date with the stream, and answers from it: see `state` for the states and their table.

A small piece of the stream is read at once, in the loop; builder processes read what would take long (`builder`). In
both cases queries are answered from what is indexed so far.

If the index does not belong to the stream, or the stream contradicts what was read of it, the index is set aside and
begun again. Wrong entries of the right index are repaired (`repair`); if that would take long, the index is cut before
them and made again from there. Entries that are ahead of the commit mark wait for it (`file`).
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from indexer.builder import Builder
from indexer.errors import CorruptIndexError, IndexFileError, NotFoundError
from indexer.state import NEXT, SETTLED, State
from indexer.store import RETRY_SECONDS, IndexStore
from indexer.stream_index import StreamIndex, read_nothing, reader
from indexer.walker import RewrittenError
from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from indexer.options import Options
    from indexer.segments import Joiner, SegmentResult
    from tailsrv_formats.framing import Framing
    from tailsrv_formats.index_query import Answer, Query
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

TURN_SECONDS: Final = 0.0005
"""How long one turn keeps the loop from its clients."""

CATCH_UP_SECONDS: Final = 0.005
"""The same while a client waits for an answer that depends on the stream's end."""

ATTACH_SECONDS: Final = 0.05
"""The same when FILE is opened: a small stream is indexed before the first query."""

FAR_BYTES: Final = 16 << 20
"""If more than this is unread, builder processes read it."""

_STALE: Final = frozenset({errno.ESTALE, errno.ENOTCONN, errno.EBADF})
"""The descriptor will never work again: the file system was mounted again, or its server was restarted."""


class Follower:
    """The index of FILE. `attach`, `advance` and `detach` report what becomes of FILE."""

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        framing: Framing,
        log: Log,
        *,
        on_stale: Callable[[], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Open the index; FILE may come later.

        ``on_stale()`` is called when the descriptor of FILE will never work again, and calls `detach`.
        ``on_progress(done, total)`` is called with how much of FILE was read, in bytes. Raises as `IndexStore` does.
        """
        self._reactor = reactor
        self._framing = framing
        self._log = log
        self._file = options.file
        self._on_stale = on_stale
        self._on_progress = on_progress
        self._store = IndexStore(reactor, options, framing, log, self._read_again)
        self._index_file = self._store.file
        self._index = StreamIndex(self._store, framing, read_nothing)
        self._fd = -1
        self._end = 0  # of what is committed
        self._state = State.WAITING
        self._is_settled = False
        self._behind_since: float | None = None  # monotonic; None while nothing is unread
        self._unreadable: str | None = None  # why FILE can't be read, until a read succeeds
        self._is_stale = False
        self._retry: Timer | None = None  # pending while FILE can't be read
        self._builder: Builder | None = None  # in BUILDING
        self._no_builder_before = 0  # builder processes got nowhere: the loop reads up to this byte
        self._is_posted = False
        self._corruption_logged = self._no_builder_logged = False

    def close(self) -> None:
        """End the builder processes, and close the index."""
        self.detach()
        self._store.close()

    def _become(self, state: State) -> None:
        """Change the state: the one place where this happens."""
        if state is self._state:
            return
        if state not in NEXT[self._state]:
            raise RuntimeError(f"a follower that is {self._state} cannot become {state}")
        if self._builder is not None:
            self._builder.stop()
            self._builder = None
        self._state = state
        self._is_settled = state in SETTLED

    # --- FILE

    def attach(self, fd: int, end: int) -> None:
        """FILE was opened, and is committed up to `end`. Raises `FatalError` if it is the index itself."""
        if self._store.is_same_file(fd):
            raise FatalError(f"{self._file} is the index itself; choose another path with --index")
        self.detach()
        self._fd = fd
        self._become(State.UNVERIFIED)
        self._advance(end, ATTACH_SECONDS)

    def detach(self) -> None:
        """FILE is not read any more; its descriptor may be closed."""
        self._become(State.WAITING)
        self._fd, self._end = -1, 0
        self._index = StreamIndex(self._store, self._framing, read_nothing)
        self._is_stale = False
        self._no_builder_before = 0
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def advance(self, end: int) -> None:
        """FILE has changed, and is committed up to `end` now: read on, for as long as a turn may take."""
        self._index.forget_blocks()
        self._advance(end, TURN_SECONDS)

    def catch_up(self) -> None:
        """Read on for longer: a client asks, and what it asks for may just have been appended."""
        if self._is_settled and self._index.is_behind(self._end):
            self._advance(self._end, CATCH_UP_SECONDS)

    def _read_again(self) -> None:
        self._advance(self._end, TURN_SECONDS)

    def _advance(self, end: int, seconds: float) -> None:
        before, self._end = self._end, end
        if self._fd < 0 or self._retry is not None:
            return
        try:
            self._follow(before, seconds)
        except RewrittenError:
            self._start_over(f"the stream has other bytes before offset {self._index.end} than were read there")
        except OSError as error:
            self._suspend(error)
        else:
            if self._unreadable is not None:
                self._unreadable = None
                self._log.info("stream read resumed", file=self._file)

    def _follow(self, before: int, seconds: float) -> None:
        if self._state is State.UNVERIFIED or self._end < self._index.end:
            self._become(State.UNVERIFIED)
            self._index = StreamIndex.verify(self._store, self._framing, self._fd, self._end)
            self._corruption_logged = False
            self._become(State.CATCHING_UP)
        elif self._end < before:
            # Nothing that was answered is gone, but what had been read of the next message may be another's now.
            if self._state is State.BUILDING:
                self._become(State.CATCHING_UP)
            elif self._state is State.CORRUPT:
                self._become(State.LIVE)
                self._corruption_logged = False
            self._index.rewind()
        if self._state is State.BUILDING or (self._end - self._index.position > FAR_BYTES and self._build()):
            return
        self._read_on(seconds)

    def _read_on(self, seconds: float) -> None:
        index, file, end, deadline = self._index, self._index_file, self._end, time.monotonic() + seconds
        is_late = False
        while index.is_behind(end):
            if is_late or file.is_full():
                break
            if not index.read_on(end, exact=self._is_settled):
                return  # it has just been cut: the event is on its way
            is_late = time.monotonic() > deadline
        else:
            self._on_caught_up()
            return
        self._note_lag()
        if not file.is_full() and not self._is_posted:
            self._is_posted = True
            self._reactor.post(self._on_turn)

    def _on_turn(self) -> None:
        self._is_posted = False
        self._read_again()

    def _on_caught_up(self) -> None:
        index = self._index
        if not self._is_settled:
            self._on_progress(self._end, self._end)
        self._behind_since = None
        state = State.LIVE if index.framing_error is None else State.CORRUPT
        if state is not self._state:  # for each append: spares a call
            self._become(state)
        if index.framing_error is not None and not self._corruption_logged:
            self._corruption_logged = True
            self._log.error(
                "corrupt stream: invalid framing",
                file=self._file,
                offset=index.end,
                number=index.count,
                error=index.framing_error,
                advice="messages before this offset are answered; check --framing and --max-message-bytes",
            )

    def _note_lag(self) -> None:
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        if not self._is_settled:
            self._on_progress(self._index.end, self._end)

    def _is_current(self) -> bool:
        """Whether everything that FILE holds is indexed."""
        return self._is_settled and not self._index.is_behind(self._end)

    # --- what goes wrong

    def _start_over(self, why: str) -> None:
        """Set the index aside and begin a new one."""
        self._store.set_aside(why)
        self._index = StreamIndex(self._store, self._framing, reader(self._fd))
        self._corruption_logged = False
        self._no_builder_before = 0
        if self._state is not State.UNREADABLE:
            self._become(State.CATCHING_UP)
        self._read_again()

    def _suspend(self, error: OSError) -> None:
        """FILE or the index can't be read at the next place that has to be read: try again later."""
        where = self._index.position
        self._index.rewind()
        if self._state is not State.UNVERIFIED:
            self._become(State.UNREADABLE)
        file = error.filename or self._file
        self._is_stale = error.errno in _STALE and not isinstance(error, IndexFileError)
        if self._unreadable is None:
            facts = {"error": reason(error), "advice": "check the disk, or the server of the file system"}
            self._log.warning("stream read failed", file=file, offset=where, **facts)
        self._unreadable = f"{file} cannot be read around byte {where}: {reason(error)}"
        self._note_lag()
        self._retry = self._reactor.call_later(RETRY_SECONDS, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = None
        if self._is_stale:
            self._is_stale = False
            self._on_stale()
            return
        if self._state is State.UNREADABLE:
            self._become(State.CATCHING_UP)
        self._read_again()

    def on_read_error(self, error: OSError) -> None:
        """A look-up met this error. If the descriptor will never work again, FILE is to be opened again."""
        is_stale = error.errno in _STALE and not isinstance(error, IndexFileError)
        if is_stale and self._fd >= 0 and self._retry is None:
            self._suspend(error)

    def repair(self, error: CorruptIndexError) -> None:
        """Repair the index around the entry that the stream contradicts. Raises `OSError` if that can't be read."""
        why = self._index.head_mismatch()
        if why is not None:
            self._start_over(why)
            return
        count = self._index.repair(error)
        if count is not None:
            self._cut(count, error)

    def cut(self, error: CorruptIndexError) -> None:
        """The index was repaired, and the stream still contradicts it: make all that follows again."""
        self._cut(self._index.right_before(error), error)

    def _cut(self, count: int, error: CorruptIndexError) -> None:
        self._become(State.UNVERIFIED)
        self._store.cut(count, str(error))
        self._no_builder_before = 0
        self._read_again()

    # --- building

    def _build(self) -> bool:
        """Let builder processes read what is unread. Returns whether they do."""
        index, header = self._index, self._index_file.header
        begin = index.end
        if not index.is_behind(self._end) or begin < self._no_builder_before or self._index_file.is_full():
            return False
        joiner = index.joiner()
        try:
            builder = Builder(
                self._reactor,
                self._fd,
                self._framing,
                interval=header.interval,
                seed=header.seed(),
                begin=begin,
                end=self._end,
                on_result=lambda result: self._on_result(joiner, result),
                on_end=lambda: self._on_built(begin),
            )
        except OSError as error:
            self._no_builder_before = begin + FAR_BYTES
            if not self._no_builder_logged:
                self._no_builder_logged = True
                advice = "the index is built in one process, which takes longer"
                self._log.warning("builder processes not started", error=reason(error), advice=advice)
            return False
        self._become(State.BUILDING)
        self._builder = builder
        self._no_builder_logged = False
        self._log.info("indexing", file=self._file, begin=begin, end=self._end)
        self._note_lag()
        return True

    def _on_result(self, joiner: Joiner, result: SegmentResult) -> bool:
        raw = joiner.join(result)
        try:
            self._index.add(raw or (), joiner.number, joiner.boundary, exact=False)
        except OSError:
            return False  # the loop goes on from here, and meets the same
        self._note_lag()
        return raw is not None and not result.is_corrupt and not self._index_file.is_full()

    def _on_built(self, begin: int) -> None:
        """The builder processes are done, or got as far as they could; the loop reads the rest."""
        index, self._builder = self._index, None
        self._become(State.CATCHING_UP)
        if index.end - begin < FAR_BYTES:
            # A process died, or none of them sees the end of a message: others would not get further here.
            self._no_builder_before = index.end + FAR_BYTES
        index.rewind()
        self._log.info("indexed", file=self._file, end=index.end, messages=index.count)
        self._read_again()

    # --- queries

    def offset_of(self, query: Query) -> int:
        """Where the message of a plain query starts, `number` or `last`. Raises as `answer` does."""
        if not self._is_settled:
            self._refuse_unknown(query)
        index = self._index
        if query.kind == "last" and not self._is_current():
            raise self._not_indexed()  # a plain reply cannot say that the end is not known yet, as `partial` does
        try:
            return index.offset_of(query.value if query.kind == "number" else max(0, index.count - query.value))
        except NotFoundError:
            if self._is_current() or self._fd < 0:
                raise
            raise self._not_indexed() from None

    def answer(self, query: Query) -> Answer:
        """Everything about a message. Raises `NotFoundError`, `CorruptIndexError`, `OSError`."""
        if not self._is_settled:
            self._refuse_unknown(query)
        try:
            answer = self._index.answer(query)
        except NotFoundError:
            if self._is_current() or self._fd < 0:
                raise
            raise self._not_indexed() from None
        return answer if self._is_current() else replace(answer, partial=True)

    def _refuse_unknown(self, query: Query) -> None:
        """Raise `NotFoundError` for what is not indexed yet, while the end of the stream is unknown."""
        index, file, kind, value = self._index, self._index_file, query.kind, query.value
        if self._state is State.WAITING:
            # An index without entries is that of a stream without messages, which is what there is so far.
            if file.count or file.ahead or (kind == "number" and value > 0):
                raise NotFoundError(f"{self._file} does not exist yet; ask again later")
            return
        if self._state is State.UNVERIFIED:
            raise NotFoundError(f"{self._unreadable or 'the index is being compared'}; ask again later")
        if not (
            (kind == "number" and value < index.count)
            or (kind == "offset" and value < index.end)
            or (kind == "time" and value <= index.latest)
        ):
            raise self._not_indexed()

    def _not_indexed(self) -> NotFoundError:
        state = "ask again later"
        if self._index_file.is_full():
            state = "indexing stopped: the index cannot be written"
        elif self._unreadable is not None:
            state = f"indexing stopped: {self._unreadable}"
        indexed = f"{self._index.count} messages in {self._index.end} of {self._end} bytes so far"
        return NotFoundError(f"not indexed yet: {indexed}; {state}")

    # --- metrics and health

    def metrics(self) -> Iterator[Metric]:
        """How far the index is."""
        index, file, prefix = self._index, self._index_file, "tailsrv_index"
        yield Metric("gauge", f"{prefix}_messages", "Messages that are indexed.", index.count)
        yield Metric("gauge", f"{prefix}_stream_bytes", "Committed bytes of the stream.", self._end)
        behind = self._end - index.end
        yield Metric("gauge", f"{prefix}_behind_bytes", "Committed bytes after the last indexed message.", behind)
        seconds = 0.0 if self._behind_since is None else time.monotonic() - self._behind_since
        yield Metric("gauge", f"{prefix}_behind_seconds", "Seconds since committed bytes are unread.", seconds)
        yield Metric("gauge", f"{prefix}_entries", "Entries of the index.", file.count)
        yield Metric("gauge", f"{prefix}_file_bytes", "Size of the index file.", file.size())
        yield Metric("counter", f"{prefix}_set_aside", "Index files that were set aside.", self._store.set_asides)
        yield Metric("counter", f"{prefix}_repaired", "Wrong entries that were repaired.", self._store.repaired)

    def problems(self) -> Iterator[str]:
        """Why it can't answer everything, the most important reason first."""
        if self._unreadable is not None:
            yield self._unreadable
        if self._state is State.WAITING:
            yield f"waiting for {self._file}"
        yield from self._store.problems()
        if self._index.framing_error is not None:
            yield f"{self._file} is corrupt: invalid framing at offset {self._index.end}"
        if not self._is_settled:
            yield f"indexing: {self._index.end} of {self._end} bytes"
