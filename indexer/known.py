"""What is known of a stream: its index, how far its messages are counted, and by when the latest were there.

The index is taken up when the stream is there (`take_up`): one that is another stream's is set aside, wrong entries are
repaired, entries that are ahead of the stream's end wait for it. From then on `note` adds what was found. What can't be
written is written later.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from indexer.arrival_log import ArrivalLog
from indexer.errors import CorruptIndexError
from indexer.file import IndexFile
from indexer.identity import fits, head_mismatch, identify, last_match, samples
from indexer.lookup import Lookup
from indexer.paths import free_name, is_default, refuse_companion
from indexer.repair import last_valid, mend
from tailsrv_formats.errors import reason
from tailsrv_formats.index_file import RAW_FIELDS, Entry, Header, encode_entries
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from indexer.options import Options
    from tailsrv_formats.framing import Framing
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

RETRY_SECONDS: Final = 1.0
"""How soon writing the index, or reading the stream, is tried again when the kernel refused it."""

_ANYWHERE: Final = 1 << 48
"""More messages than an entry can count."""


class Known:
    """What is known of the stream that `read` reads: ``read(offset, count)``, as many bytes as there are."""

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        framing: Framing,
        log: Log,
        *,
        read: Callable[[int, int], bytes],
        written: Callable[[], None],
    ) -> None:
        """Take up the index that there is if it is one of these options, whatever the stream may be.

        ``written()`` is called when the index can be written again. Raises `FatalError`, and `UsageError` where the
        index would take the place of a file that is not ours.
        """
        self._reactor = reactor
        self._options = options
        self._framing = framing
        self._log = log
        self._read = read
        self._written = written
        refuse_companion(options.file, options.index)
        self.index = IndexFile(options.index, Header(framing.name, options.interval_bytes, time.time_ns()))
        self.arrivals: ArrivalLog
        self.lookup: Lookup
        self.rebuilt = 0
        """How often an index was set aside."""
        self.repaired = 0
        """How many entries were written again."""
        self._retry: Timer | None = None
        try:
            self._open()
        except BaseException:
            self.index.close()
            raise

    def close(self) -> None:
        """Close the index."""
        if self._retry is not None:
            self._retry.cancel()
        self.index.close()

    def header(self) -> Header:
        """The index's."""
        return self.index.header

    # --- beginning

    def _open(self) -> None:
        if self.index.is_empty():
            self._begin()
            return
        why = self._why_not()
        if why is not None:
            self.set_aside(why, at_start=True)
        else:
            self._start_at(-1)

    def _why_not(self) -> str | None:
        """Why the index can't be used. Raises `FatalError` where the file is not ours to be set aside."""
        index = self.index
        try:
            is_ours = index.is_ours()
            loaded = is_ours and index.load()
        except OSError as error:
            if not is_default(self._options.file, index.path):
                raise FatalError(f"cannot read {index.path}: {reason(error)}; check the disk, or remove it") from None
            return f"cannot be read: {reason(error)}"
        # FILE.index is ours by its name, whatever has become of its content. Any other file may be somebody's.
        if not is_ours and not is_default(self._options.file, index.path):
            raise FatalError(
                f"{index.path} is no index, or its first bytes are damaged; it is left as it is: "
                "remove it if it was an index, or choose another place with --index"
            )
        if self._options.rebuild:
            return "--rebuild"
        if not loaded:
            return "its header is damaged" if is_ours else "it is no index"
        header = index.header
        if header.framing != self._framing.name or header.interval != self._options.interval_bytes:
            return f"it was made with --framing {header.framing} --interval-bytes {header.interval}"
        return None

    def take_up(self, fd: int, end: int) -> None:
        """Find out what of the index is this stream's, which may be read up to `end`, and go on from there.

        Raises `OSError` where the stream can't be read; it is to be called again then.
        """
        index, header, size = self.index, self.header(), os.fstat(fd).st_size
        index.restore()
        why = None
        if index.count:
            why = head_mismatch(header, self._read)
            last = -1 if why else last_match(index, self._read, size)
            if last < 0:
                self.set_aside(why or "the stream has other bytes before every entry")
            elif last + 1 < index.count:
                self._log.warning("index repaired", index=index.path, cut=index.count - last - 1)
                index.cut(last + 1)
        self._resume(end)
        for position in samples(index.count):
            if not fits(index, position, self._read, size):
                error = CorruptIndexError("a sample of its entries does not fit the stream", position)
                count = self.mend(error)
                if count is not None:
                    self.cut(count, error)
                    self._resume(end)
                    break
        if index.count and not header.head_bytes:
            index.identify(identify(header, self._read))

    def set_aside(self, why: str, *, at_start: bool = False) -> None:
        """Keep a copy of the index, and begin a new one."""
        aside = self.index.set_aside(free_name(self._options.file, self.index.path), at_start=at_start)
        self.rebuilt += 1
        facts = {} if aside else {"advice": "no copy was kept; remove older copies if you want one the next time"}
        self._log.warning("index set aside", index=self._options.index, renamed=aside, because=why, **facts)
        self._begin()

    def _begin(self) -> None:
        header = Header(self._framing.name, self._options.interval_bytes, time.time_ns())
        # Only its first bytes show that a file of another name is ours: a power cut must not take them.
        self.index.begin(header, durable=not is_default(self._options.file, self.index.path))
        if self.index.write_error is not None:
            self._retry_later()
        self._start_at(-1)

    def _resume(self, end: int) -> None:
        """Go on behind the last entry within the stream's end that the stream verifies."""
        index = self.index
        if index.count and index.entry(index.count - 1).offset > end:
            index.retract(index.find_offset(end, index.entry(index.count - 1).offset).position + 1)
        bounds = ArrivalLog(Entry(_ANYWHERE, end, _ANYWHERE << 15, exact=False))
        position = last_valid(index, self._lookup_in(bounds), index.count - 1)
        index.retract(position + 1)
        self._start_at(position)
        if index.ahead:
            self._log.info("index ahead of the stream", index=index.path, end=end, entries=index.ahead)

    def _start_at(self, position: int) -> None:
        """Go on behind this entry."""
        last = self.index.entry(position)
        self.arrivals = ArrivalLog(last)
        self.lookup = self._lookup_in(self.arrivals)

    def _lookup_in(self, arrivals: ArrivalLog) -> Lookup:
        return Lookup(self._framing, self.index, arrivals, self._read)

    # --- repairing

    def mend(self, error: CorruptIndexError) -> int | None:
        """Write the wrong entries again. Where that is too much, returns how many are right before them."""
        wrong = self.place(error)
        right = last_valid(self.index, self.lookup, wrong)
        try:
            mended = mend(self.index, self._framing, self._read, right=right, wrong=wrong, end=self.arrivals.last())
        except CorruptIndexError:
            return self.right_before(error)
        self.repaired += mended
        self._log.warning("index repaired", index=self.index.path, entries=mended, because=str(error))
        return None

    def place(self, error: CorruptIndexError) -> int:
        """The entry that it is about."""
        return min(error.position, self.index.count - 1)

    def right_before(self, error: CorruptIndexError) -> int:
        """How many entries are right, and in order, before the wrong one."""
        return last_valid(self.index, self.lookup, self.place(error), in_order=True) + 1

    def cut(self, count: int, error: CorruptIndexError) -> None:
        """Forget all entries but the first `count`."""
        cut = self.index.count + self.index.ahead - count
        self._log.warning("index repaired", index=self.index.path, cut=cut, because=str(error))
        self.index.cut(count)

    # --- adding

    def note(self, raw: Sequence[int], number: int, boundary: int, *, exact: bool) -> None:
        """Put down what was found: entries, and that the messages before `boundary` are there."""
        last = self.arrivals.last()
        if number == last.number:
            return
        now = max(time.time_ns(), last.time)  # a clock that is set back stands still here
        if raw:
            now = self._put_down(raw, now, exact=exact)
        self.arrivals.add(Entry(number, boundary, now, exact))

    def _put_down(self, raw: Sequence[int], now: int, *, exact: bool) -> int:
        """Write entries, or find that they are there already. Returns by when these messages were there."""
        index = self.index
        if index.ahead:
            adopted, last = index.adopt(raw)
            if last is not None:
                # As after a start: of what is before this one, the index knows best when it arrived.
                self.arrivals.restart(last)
                now = max(now, last.time)
            raw = raw[RAW_FIELDS * adopted :]
            if not raw:
                return now
        if not index.count:
            index.identify(identify(self.header(), self._read))
        index.append(encode_entries(raw, now, exact=exact))
        if index.write_error is not None:
            self._retry_later()
        return now

    def _retry_later(self) -> None:
        if self._retry is None:
            self._log.warning(
                "index not written", index=self.index.path, error=self.index.write_error, advice=self.index.advice
            )
            self._retry = self._reactor.call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self.index.flush()
        if self.index.write_error is not None:
            self._retry = self._reactor.call_later(RETRY_SECONDS, self._try_again)
            return
        self._retry = None
        self._log.info("index written again", index=self.index.path)
        self._written()
