"""The work of `tailsrv-cat`: from a consumer to standard output."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from typing import TYPE_CHECKING, Final

from tailsrv_client.blocking.consumer import Consumer
from tailsrv_client.blocking.index import PersistentIndex
from tailsrv_client.cat.formats import Template, raw_renderer, render_json
from tailsrv_client.cat.lag import LagReporter
from tailsrv_client.progress import Progress
from tailsrv_client.protocol.timeouts import Timeouts
from tailsrv_client.terminal import SoftStop, watch_output, write_all
from tailsrv_formats.errors import TailsrvError, UsageError, reason
from tailsrv_formats.framing import make_framing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_client.cat.formats import Render
    from tailsrv_client.cat.options import Options
    from tailsrv_client.protocol.messages import Message

    Numbered = tuple[Message, int | None]

LOG = logging.getLogger("tailsrv_client")

OUTPUT: Final = 1
"""Standard output; not `sys.stdout`, whose buffer would keep bytes and complain at the end."""

BATCH_MESSAGES: Final = 4096
"""Messages that are rendered before they are written."""


def copy_stream(options: Options) -> None:
    """Copy until there is nothing more to copy. Raises `BrokenPipeError` when the reader of the output has gone."""
    copier = Copier(options)  # raises `UsageError` before a checkpoint is locked
    consumer = Consumer(
        options.addresses,
        start=options.start,
        until=options.until if copier.counts or options.count is None else f"count:{options.count}",
        framing=options.framing,
        index=options.index,
        checkpoint=options.checkpoint,
        max_message_bytes=options.max_message_bytes,
        numbered=copier.numbered,
        timeouts=Timeouts(outage=options.timeout),
    )
    unread = threading.Event()

    def output_closed() -> None:
        unread.set()
        stop()

    def stop() -> None:
        consumer.stop()
        copier.stop()

    soft = SoftStop(stop)
    try:
        with consumer:
            watch_output(OUTPUT, output_closed)
            done = _copy(copier, consumer, options)
            satisfied = copier.satisfied or done
    except TailsrvError:
        # What was in hand when it was stopped is not printed; the checkpoint knows that.
        if not (unread.is_set() or soft.signalled):
            raise
        satisfied = False
    if unread.is_set() and not satisfied:
        raise BrokenPipeError
    if consumer.unsaved is not None:
        error = (
            f"the last checkpoint was not written to {options.checkpoint} ({reason(consumer.unsaved)}); the next run"
            " prints the messages since the one before it again"
        )
        if not soft.signalled:
            raise TailsrvError(error)
        LOG.warning("%s", error)
    soft.finish()


def _copy(copier: Copier, consumer: Consumer, options: Options) -> bool:
    """Returns whether all that was wanted has been copied."""
    consumer.check()
    if options.lag:
        LagReporter(consumer, as_json=options.form == "json").start()
    total = consumer.remaining
    progress = Progress(forced=options.progress, total=total, quiet_with=(OUTPUT,))
    if copier.counts:
        copier.copy_some(consumer, progress)
    elif options.by_message:
        copier.copy_messages(consumer, progress)
    else:
        copy_bytes(consumer, progress)
    return consumer.complete


def copy_bytes(consumer: Consumer, progress: Progress) -> None:
    """The stream as it is."""
    done = 0
    for chunk in consumer.chunks():
        write_all(OUTPUT, chunk)
        done += len(chunk)
        progress.at(done)
    progress.end(done)


class Copier:
    """Messages, chosen and rendered."""

    def __init__(self, options: Options) -> None:
        self._render, self._fields = _renderer(options)
        try:
            self._search = None if options.grep is None else re.compile(options.grep.encode()).search
        except re.error as error:
            raise UsageError(f"--grep {options.grep!r}: {error}") from None
        self.counts: bool = options.count is not None and (options.grep is not None or options.until is not None)
        """Whether it is not for the consumer to count: only matches count, or there is another end too."""
        self._remaining = options.count
        self._index: PersistentIndex | None = None
        if options.index is not None and "t" in self._fields:
            self._index = PersistentIndex(options.index, options.timeout)
        if "t" in self._fields and options.index is None and options.form == "format":
            raise UsageError("--format %t needs an indexer: name it with --index ADDR")
        self.numbered: bool = "n" in self._fields and options.index is not None

    def stop(self) -> None:
        """End a wait for the indexer. In any thread."""
        if self._index is not None:
            self._index.stop()

    @property
    def satisfied(self) -> bool:
        """Whether `--count` messages were printed."""
        return self._remaining == 0

    def copy_messages(self, consumer: Consumer, progress: Progress) -> None:
        """All messages, or all that match."""
        begin = consumer.position.offset
        for batch in consumer.batches():
            number = consumer.number
            numbers = itertools.repeat(None) if number is None else itertools.count(number - len(batch))
            chosen: Iterator[Numbered] = zip(batch, numbers)  # noqa: B905 - numbers have no end
            if self._search is not None:
                chosen = filter(self._matches, chosen)
            while some := list(itertools.islice(chosen, BATCH_MESSAGES)):
                write_all(OUTPUT, self._rendered(some))
            progress.at(batch[-1].end - begin)
        progress.end(consumer.position.offset - begin)

    def copy_some(self, consumer: Consumer, progress: Progress) -> None:
        """The first `--count` matches, one by one, so that a checkpoint ends with the last of them."""
        begin = consumer.position.offset
        for message in consumer if self._remaining else ():
            progress.at(message.end - begin)
            number = consumer.number
            numbered = (message, None if number is None else number - 1)
            if self._matches(numbered):
                write_all(OUTPUT, self._rendered([numbered]))
                self._remaining = (self._remaining or 0) - 1
                if self.satisfied:
                    break
        progress.end(consumer.position.offset - begin)

    def _matches(self, numbered: Numbered) -> bool:
        return self._search is None or self._search(numbered[0].payload) is not None

    def _rendered(self, chosen: list[Numbered]) -> bytes:
        render = self._render
        if self._index is None:
            return b"".join([render(message, number, None) for message, number in chosen])
        entries = self._index.ask_all({"offset": message.offset} for message, _ in chosen)
        return b"".join(
            [render(message, number, entry.time) for (message, number), entry in zip(chosen, entries, strict=True)]
        )


def _renderer(options: Options) -> tuple[Render, set[str]]:
    if options.form == "json":
        return render_json, {"n", "t"} if options.index is not None else {"n"}
    if options.form == "format":
        template = Template(options.template)
        return template.render, template.fields
    return raw_renderer(make_framing(options.framing, options.max_message_bytes)), set()
