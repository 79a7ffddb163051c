"""The collator as a daemon: it listens, takes FILE over, and lets a pipeline work on it.

It listens from the first moment on, and accepts as soon as FILE is taken over; see startup.py and pipeline.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from collator.pipeline import Pipeline
from collator.startup import Startup
from tailsrv_formats.errors import UsageError
from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.listeners import bind_all, inherited_listeners
from tailsrv_runtime.metrics import Histogram, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from collator.options import Options
    from collator.port_events import PortEvents
    from collator.startup import Taken
    from tailsrv_runtime.listeners import Listener
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

ACK_SOCKET: str = "ack"
"""FileDescriptorName= of the acknowledged port's sockets; sockets with any other name belong to the raw port."""


class Collator:
    """See `tailsrv_runtime.daemon.Server`."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._listeners: dict[str, list[Listener]] = {"raw": [], "acknowledged": []}
        self._acceptors: dict[str, list[Acceptor]] = {"raw": [], "acknowledged": []}
        self._startup = Startup(reactor, options, log, taken=self._taken, waiting=self._ready)
        self._pipeline: Pipeline | None = None
        self._announce: Callable[[], None] | None = None

    # --- the daemon's life

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen, and begin to take FILE over. It is ready when that has ended, or waits for something."""
        self._announce = ready
        self._listen()
        self.addresses = {
            lane: tuple(listener.address for listener in listeners) for lane, listeners in self._listeners.items()
        }
        self._startup.begin()

    def _listen(self) -> None:
        options, listeners = self._options, self._listeners
        if not options.listen and not options.ack_listen:
            inherited = inherited_listeners()
            listeners["acknowledged"] += inherited.pop(ACK_SOCKET, [])
            for others in inherited.values():
                listeners["raw"] += others
        listeners["raw"] += bind_all(options.listen)
        listeners["acknowledged"] += bind_all(options.ack_listen)
        if not any(listeners.values()):
            raise UsageError("no address to listen on: give --port, --listen, --ack-port or --ack-listen")

    def _ready(self) -> None:
        if self._announce is not None:
            announce, self._announce = self._announce, None
            announce()

    def _taken(self, taken: Taken) -> None:
        """FILE is ours: accept producers."""
        options, log = self._options, self._log
        self._pipeline = pipeline = Pipeline(self._reactor, options, taken, log, self._stop_accepting)
        allow = AllowList(options.allow)
        for lane, connected in (("raw", pipeline.raw.connected), ("acknowledged", pipeline.acknowledged.connected)):
            self._acceptors[lane] = [
                Acceptor(self._reactor, listener, allow, connected, log) for listener in self._listeners[lane]
            ]
        log.info("collating", file=options.file, framing=options.framing, **self.addresses)
        self._ready()
        pipeline.look()  # FILE may have been moved during the recovery; what is queued is taken then

    def stop(self) -> None:
        """Commit what has come, tell the producers, and end."""
        if self._pipeline is None:
            self._startup.stop()
        else:
            self._pipeline.stop()

    def _stop_accepting(self) -> None:
        """Take the connections that are queued: what was sent and forgotten may be in them."""
        for acceptors in self._acceptors.values():
            for acceptor in acceptors:
                acceptor.take_queued()
                acceptor.close()
        self._listeners = {"raw": [], "acknowledged": []}

    def close(self) -> None:
        """Give everything back."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._startup.close()
        for listeners in self._listeners.values():
            for listener in listeners:
                self._reactor.unregister(listener.socket.fileno())
                listener.close()

    # --- how it is

    def unhealthy(self) -> str | None:
        """Why messages are not committed at the moment."""
        if self._pipeline is None:
            return self._startup.unhealthy()
        return self._pipeline.unhealthy()

    def metrics(self) -> Iterator[Metric | Histogram]:
        """What the collator counts."""
        pipeline = self._pipeline
        yield _gauge("stalled", "1 while nothing can be committed.", float(self.unhealthy() is not None))
        if pipeline is None:
            return
        committer, builder = pipeline.committer, pipeline.builder
        yield _counter("messages", "Messages committed.", pipeline.messages)
        yield _counter("bytes", "Bytes committed.", pipeline.bytes)
        yield _counter("commits", "Commits.", committer.commits)
        yield committer.sizes
        yield committer.durations
        yield _gauge("file_bytes", "Length of the stream.", builder.batch.start)
        yield _gauge("buffered_bytes", "Memory that holds bytes not committed yet.", builder.held)
        yield _gauge("last_commit_seconds", "Time since the last commit.", time.monotonic() - committer.last_commit)
        yield _gauge("names", "Producers that the journal knows.", len(pipeline.known))
        for lane, events, connected in (
            ("raw", pipeline.raw.events, len(pipeline.raw.producers)),
            ("acknowledged", pipeline.acknowledged.events, len(pipeline.acknowledged.connections)),
        ):
            yield from self._lane_measures(lane, events, connected)

    def _lane_measures(self, lane: str, events: PortEvents, connected: int) -> Iterator[Metric]:
        acceptors = self._acceptors[lane]
        yield _gauge("producers", "Producers connected.", connected, lane=lane)
        yield _counter("accepted", "Connections accepted.", sum(one.accepted for one in acceptors), lane=lane)
        yield _counter("refused", "Connections that --allow refused.", sum(one.refused for one in acceptors), lane=lane)
        yield _counter("completed", "Last messages completed with their terminator.", events.completed, lane=lane)
        for reason, number in events.dropped.items():
            yield _counter("dropped", "Incomplete messages dropped.", number, lane=lane, reason=reason)
        for reason, number in events.rejected.items():
            yield _counter("rejected", "Connections closed by the collator.", number, lane=lane, reason=reason)


def _counter(name: str, text: str, value: float, **labels: str) -> Metric:
    return Metric("counter", f"tailsrv_collate_{name}", text, value, labels)


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    return Metric("gauge", f"tailsrv_collate_{name}", text, value, labels)
