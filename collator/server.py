"""The collator as a daemon: it listens, recovers FILE (startup.py), then accepts producers (pipeline.py).

It listens before the recovery, so that producers that connect meanwhile wait in the kernel's queue.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

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
    from collator.startup import Stream
    from tailsrv_runtime.listeners import Listener
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

ACK_SOCKET: Final = "ack"
"""FileDescriptorName= of the acknowledged port's sockets; sockets with any other name belong to the raw port."""


def _announced() -> None:
    """Do nothing: `bind` has not been called yet, or readiness is announced already."""


class Collator:
    """The server that `tailsrv_runtime.daemon` runs. Its stage is a `Startup` first, and a `Pipeline` after that."""

    def __init__(self, reactor: Reactor, options: Options, log: Log) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._listeners: dict[str, list[Listener]] = {"raw": [], "acknowledged": []}
        self._acceptors: dict[str, list[Acceptor]] = {"raw": [], "acknowledged": []}
        startup = Startup(reactor, options, log, recovered=self._recovered, waiting=self._ready)
        self._begin = startup.begin
        self._stage: Startup | Pipeline = startup
        self._announce: Callable[[], None] = _announced

    # --- the methods of a server

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen, and begin the recovery. The daemon is ready when the recovery has ended or waits at an obstacle."""
        self._announce = ready
        self._listen()
        self.addresses = {
            port: tuple(listener.address for listener in listeners) for port, listeners in self._listeners.items()
        }
        self._begin()

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
        announce, self._announce = self._announce, _announced
        announce()

    def _recovered(self, stream: Stream) -> None:
        """Accept producers, because FILE is recovered."""
        options, log = self._options, self._log
        self._stage = pipeline = Pipeline(self._reactor, options, stream, log, self._stop_accepting)
        allow = AllowList(options.allow)
        for port, connected in (("raw", pipeline.raw.connected), ("acknowledged", pipeline.acknowledged.connected)):
            self._acceptors[port] = [
                Acceptor(self._reactor, listener, allow, connected, log) for listener in self._listeners[port]
            ]
        log.info("collating", file=options.file, framing=options.framing, **self.addresses)
        self._ready()
        pipeline.look()  # FILE may have been moved during the recovery; queued connections are read before the end

    def stop(self) -> None:
        """Commit what has arrived, acknowledge it, and end."""
        self._stage.stop()

    def _stop_accepting(self) -> None:
        """Accept the queued connections, whose producers may have sent messages and closed, and stop listening."""
        for acceptors in self._acceptors.values():
            for acceptor in acceptors:
                acceptor.take_queued()
                acceptor.close()
        self._listeners = {"raw": [], "acknowledged": []}

    def close(self) -> None:
        """Close all connections, files and listeners."""
        self._stage.close()
        for listeners in self._listeners.values():
            for listener in listeners:
                self._reactor.unregister(listener.socket.fileno())
                listener.close()

    # --- health and metrics

    def unhealthy(self) -> str | None:
        """Why messages are not committed at the moment; None when they are."""
        return self._stage.unhealthy()

    def metrics(self) -> Iterator[Metric | Histogram]:
        """The metrics of the collator."""
        pipeline = self._stage
        yield _gauge("stalled", "1 while nothing can be committed.", float(self.unhealthy() is not None))
        if not isinstance(pipeline, Pipeline):
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
        for port, events, connected in (
            ("raw", pipeline.raw.events, len(pipeline.raw.producers)),
            ("acknowledged", pipeline.acknowledged.events, len(pipeline.acknowledged.connections)),
        ):
            yield from self._port_metrics(port, events, connected)

    def _port_metrics(self, port: str, events: PortEvents, connected: int) -> Iterator[Metric]:
        acceptors = self._acceptors[port]
        yield _gauge("producers", "Producers connected.", connected, lane=port)
        yield _counter("accepted", "Connections accepted.", sum(one.accepted for one in acceptors), lane=port)
        yield _counter("refused", "Connections that --allow refused.", sum(one.refused for one in acceptors), lane=port)
        yield _counter("completed", "Last messages completed with their terminator.", events.completed, lane=port)
        for reason, number in events.dropped.items():
            yield _counter("dropped", "Incomplete messages dropped.", number, lane=port, reason=reason)
        for reason, number in events.rejected.items():
            yield _counter("rejected", "Connections closed by the collator.", number, lane=port, reason=reason)


def _counter(name: str, text: str, value: float, **labels: str) -> Metric:
    return Metric("counter", f"tailsrv_collate_{name}", text, value, labels)


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    return Metric("gauge", f"tailsrv_collate_{name}", text, value, labels)
