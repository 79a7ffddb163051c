"""The collator: binds, and connects intake, lanes and committer.

One thread runs it all; what blocks on the disk runs beside it (see committer). A round of the loop gathers what all
connections have delivered; after the round it is committed, or, while a commit is under way, goes on being gathered.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from inotify_simple import INotify, flags

from collator.acklane import AckLane
from collator.committer import Committer
from collator.framing import make_framing
from collator.gather import BATCH_CHUNKS, Gatherer
from collator.intake import Intake
from collator.rawlane import RawLane
from collator.recovery import recover
from collator.streamfile import StreamFile
from tailsrv.kit.acceptor import Acceptor
from tailsrv.kit.access import AllowList
from tailsrv.kit.addresses import bind_all, inherited_listeners
from tailsrv.kit.errors import FatalError, UsageError, reason
from tailsrv.kit.files import sync_directory
from tailsrv.kit.mark import SUFFIX as MARK_SUFFIX
from tailsrv.kit.mark import MarkWriter
from tailsrv.kit.measures import Histogram, Measure
from tailsrv.kit.reactor import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from collator.acks import Progress
    from collator.gather import Batch
    from collator.intake import Counts
    from collator.journal import JournalFile
    from collator.options import Options
    from tailsrv.kit.addresses import Listener
    from tailsrv.kit.logs import Log
    from tailsrv.kit.reactor import Reactor

ACK_SOCKET: str = "ack"
"""FileDescriptorName= of sockets of the acknowledged lane; those with any other name are the raw lane's."""


class Collator:
    """See `tailsrv.kit.daemon.Server`."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._listeners: list[Listener] = []
        self._acceptors: dict[str, list[Acceptor]] = {}
        self._file: StreamFile | None = None
        self._journal: JournalFile | None = None
        self._mark: MarkWriter | None = None
        self._inotify: INotify | None = None
        self._committer: Committer
        self._opened = self._stopping = False
        self._bytes = self._messages = 0

    # --- the daemon's life

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen, lock FILE, recover, and begin."""
        raw, acknowledged = self._listen()
        self._open()
        reactor, options, log = self._reactor, self._options, self._log
        allow = AllowList(options.allow)
        self._acceptors = {
            lane: [Acceptor(reactor, listener, allow, connected, log) for listener in listeners]
            for lane, listeners, connected in (
                ("raw", raw, self._raw.connected),
                ("acknowledged", acknowledged, self._ack.connected),
            )
        }
        self.addresses = {
            "raw": tuple(listener.address for listener in raw),
            "acknowledged": tuple(listener.address for listener in acknowledged),
        }
        log.info(
            "collating",
            file=options.file,
            framing=options.framing,
            raw=[listener.address for listener in raw],
            acknowledged=[listener.address for listener in acknowledged],
        )
        reactor.after_round(self._after_round)
        ready()

    def _listen(self) -> tuple[list[Listener], list[Listener]]:
        options = self._options
        inherited: dict[str, list[Listener]] = {}
        if not options.listen and not options.ack_listen:
            inherited = inherited_listeners()
        acknowledged = inherited.pop(ACK_SOCKET, [])
        raw = [listener for listeners in inherited.values() for listener in listeners]
        self._listeners = [*raw, *acknowledged]
        raw += bind_all(options.listen)
        self._listeners = [*raw, *acknowledged]
        acknowledged += bind_all(options.ack_listen)
        self._listeners = [*raw, *acknowledged]
        if not self._listeners:
            raise UsageError("nowhere to listen: give --port, --listen, --ack-port or --ack-listen")
        return raw, acknowledged

    def _open(self) -> None:
        """Take FILE over, and make everything that works on it."""
        options, reactor, log = self._options, self._reactor, self._log
        framing = make_framing(options.framing, options.max_message_bytes)
        self._file = file = StreamFile(options.file)
        try:
            recovered = recover(file, framing, options.sync.kind, log, adopt=options.adopt)
            self._journal = recovered.journal
            self._mark = MarkWriter(options.file + MARK_SUFFIX, recovered.end)
            sync_directory(options.file)  # without its mark, a stream is shown as far as it goes
        except OSError as error:
            raise FatalError(
                f"cannot recover {options.file} and what is beside it: {reason(error)};"
                " its directory has to be writable, and the disk well"
            ) from None
        file.foreign = self._foreign  # type: ignore[method-assign]  # the log is the server's
        self._gatherer = Gatherer(
            framing,
            options.buffer_bytes,
            start=recovered.end,
            # Without a sync a commit is quick: as soon as a chunk is full, while the cache still holds it.
            batch_chunks=BATCH_CHUNKS if options.sync.kind == "always" else 1,
            count=options.metrics is not None,
        )
        self._known: dict[bytes, Progress] = recovered.producers
        self._committer = Committer(
            reactor,
            file=file,
            journal=self._journal,
            mark=self._mark,
            sync=options.sync,
            log=log,
            committed=self._committed,
            producers=self._known,
        )
        self._intake = Intake(reactor, self._gatherer, self._try_commit, lambda: self._committer.busy)
        self._raw = RawLane(self._intake, self._gatherer, log)
        self._ack = AckLane(reactor, self._intake, self._gatherer, self._known, log)
        self._opened = True
        self._inotify = INotify(nonblocking=True)
        # By descriptor: the name may mean another file by now.
        self._inotify.add_watch(f"/proc/self/fd/{file.fd}", flags.MOVE_SELF | flags.DELETE_SELF | flags.ATTRIB)
        reactor.register(self._inotify.fileno(), READ, self._on_file_event)

    def stop(self) -> None:
        """Commit what has come, tell the producers, and end."""
        if self._stopping:
            self._reactor.stop()
            return
        self._intake.drain()
        self._stop_gathering()

    def _stop_gathering(self) -> None:
        self._stopping = self._intake.closed = True
        for acceptors in self._acceptors.values():
            for acceptor in acceptors:
                acceptor.close()
        self._listeners = []

    def close(self) -> None:
        """Give everything back."""
        if self._file is None:
            self._close_listeners()
            return
        if self._opened:
            self._committer.close()
            self._raw.close()
            self._ack.close()
        self._close_listeners()
        if self._inotify is not None:
            self._reactor.unregister(self._inotify.fileno())
            self._inotify.close()
        if self._mark is not None:
            self._mark.close()
        if self._journal is not None:
            self._journal.close()
        self._file.close()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            self._reactor.unregister(listener.socket.fileno())
            listener.close()
        self._listeners = []

    # --- gathering and committing

    def _after_round(self) -> None:
        self._try_commit()
        intake, committer = self._intake, self._committer
        intake.closed = self._stopping or committer.stalled is not None
        if intake.crowded and not intake.closed:
            intake.resume()
            self._try_commit()
        if self._stopping:
            self._finish()

    def _try_commit(self) -> bool:
        """Commit what is gathered, if a commit can begin; whether one did."""
        committer, gatherer = self._committer, self._gatherer
        if committer.busy or not gatherer.batch.size:
            return False
        batch = gatherer.take()
        committer.commit(batch, self._ack.moved(batch) if batch.runs else [])
        return True

    def _committed(self, batch: Batch) -> None:
        self._bytes += batch.size
        self._messages += batch.messages
        self._gatherer.release(batch)
        if batch.runs:
            self._ack.committed(batch)

    def _finish(self) -> None:
        committer = self._committer
        if committer.stalled is not None:
            waiting = self._gatherer.batch.size + (committer.batch.size if committer.batch is not None else 0)
            self._log.warning("stopped without space", file=self._options.file, uncommitted_bytes=waiting)
        elif committer.busy or self._gatherer.batch.size:
            return
        elif self._options.sync.kind == "interval":
            committer.sync_now()
        self._reactor.stop()

    # --- what happens to FILE

    def _on_file_event(self, _mask: int) -> None:
        assert self._inotify is not None  # noqa: S101 - for the type checker
        assert self._file is not None  # noqa: S101 - the same
        self._inotify.read(timeout=0)
        if self._stopping or not self._file.is_gone():
            return
        if not os.fstat(self._file.fd).st_nlink:
            raise FatalError(
                f"{self._file.path} was deleted while it was written; nothing more is acknowledged. Start again for a"
                " new stream, without the files beside the old one"
            )
        self._log.warning("file moved", file=self._file.path, advice="move the files beside it along, and start again")
        self._stop_gathering()

    def _foreign(self, start: int, size: int) -> None:
        assert self._file is not None  # noqa: S101 - for the type checker
        path = self._file.rescue(start, size)
        self._log.error(
            "foreign bytes set aside",
            file=self._file.path,
            rescued=path,
            offset=start,
            rescued_bytes=size - start,
            advice="one process writes a file: send messages to the collator instead",
        )

    # --- how it is

    def unhealthy(self) -> str | None:
        """Why messages are not committed at the moment."""
        return self._committer.stalled

    def measures(self) -> Iterator[Measure | Histogram]:
        """What the collator counts."""
        committer, gatherer = self._committer, self._gatherer
        yield _counter("messages", "Messages committed.", self._messages)
        yield _counter("bytes", "Bytes committed.", self._bytes)
        yield _counter("commits", "Commits.", committer.commits)
        yield committer.sizes
        yield committer.durations
        yield _gauge("file_bytes", "Length of the stream.", gatherer.batch.start)
        yield _gauge("buffered_bytes", "Memory that holds bytes not committed yet.", gatherer.held)
        yield _gauge("last_commit_seconds", "Time since the last commit.", time.monotonic() - committer.last_commit)
        yield _gauge("stalled", "1 while there is no space to write.", float(committer.stalled is not None))
        yield _gauge("names", "Producers that the journal knows.", len(self._known))
        for lane, counts, connected in (
            ("raw", self._raw.counts, len(self._raw.producers)),
            ("acknowledged", self._ack.counts, len(self._ack.connections)),
        ):
            yield from self._lane_measures(lane, counts, connected)

    def _lane_measures(self, lane: str, counts: Counts, connected: int) -> Iterator[Measure]:
        acceptors = self._acceptors.get(lane, [])
        yield _gauge("producers", "Producers connected.", connected, lane=lane)
        yield _counter("accepted", "Connections accepted.", sum(one.accepted for one in acceptors), lane=lane)
        yield _counter("refused", "Connections that --allow refused.", sum(one.refused for one in acceptors), lane=lane)
        yield _counter("completed", "Last messages completed with their terminator.", counts.completed, lane=lane)
        for reason_, number in counts.dropped.items():
            yield _counter("dropped", "Incomplete messages dropped.", number, lane=lane, reason=reason_)
        for reason_, number in counts.rejected.items():
            yield _counter("rejected", "Connections closed by the collator.", number, lane=lane, reason=reason_)


def _counter(name: str, text: str, value: float, **labels: str) -> Measure:
    return Measure("counter", f"tailsrv_collate_{name}", text, value, labels)


def _gauge(name: str, text: str, value: float, **labels: str) -> Measure:
    return Measure("gauge", f"tailsrv_collate_{name}", text, value, labels)
