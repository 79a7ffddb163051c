"""The broadcaster: serves one file to any number of clients, on one thread that never blocks.

`Broadcaster` owns the connections. It accepts a client, has its header read (header_reader.py), passes it to the
fan-out (fanout.py), which sends the file's bytes, and closes it (lingering_close.py). It also reacts to changes of the
file, and ends the daemon.

The end is a drain: the daemon stops listening, each client gets the bytes that the file has at this moment and then a
FIN, and the loop stops when all clients have everything, when `--drain` has passed, or when no client has read anything
for a while.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

from tailsrv.client_log import ClientLog
from tailsrv.dead_peers import DeadPeers
from tailsrv.fanout import Fanout
from tailsrv.header_reader import HeaderReader
from tailsrv.lingering_close import LingeringClose, reset_on_close
from tailsrv.subscriber import AWAITING_HEADER, REPLAYING, Subscriber
from tailsrv_formats.header import AvailableRange, HeaderError, Where
from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.listeners import Listener, listeners_for
from tailsrv_runtime.metrics import Metric, unexpected_errors
from tailsrv_runtime.reactor import HANGUP, READ
from tailsrv_runtime.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv.options import Options
    from tailsrv_runtime.errors import FatalError
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

DRAIN_CHECK_SECONDS: Final = 0.02
"""How often a drain checks whether clients have acknowledged their last bytes; the kernel has no event for that."""

STALL_SECONDS: Final = 1.0
"""After SIGTERM, the drain ends when no client has read anything for this long."""


def _do_nothing() -> None:
    pass


class Broadcaster:
    """Serves one file. A `Server` for `run_daemon`."""

    def __init__(
        self,
        reactor: Reactor,
        options: Options,
        log: Log,
        *,
        stream_log: Log | None = None,
        file_gone: Callable[[], None] = _do_nothing,
    ) -> None:
        """`stream_log`: the log for events of the file; None: `log`.

        ``file_gone()`` is called when the file was moved or deleted, before the drain begins.
        """
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._file_gone = file_gone
        self._stream = Stream(
            reactor,
            options.file,
            stream_log or log,
            changed=self._on_change,
            gone=self._on_file_gone,
            failed=self._on_failure,
            use_mark=options.commit_mark,
            poll_seconds=options.poll,
        )
        self._fanout = Fanout(
            reactor,
            self._stream,
            self._close_gracefully,
            self._reset,
            abort=self._abort,
            replay_rate=options.replay_rate,
        )
        self._headers = HeaderReader(reactor, options.header_timeout, log, expired=self._close_now, abort=self._abort)
        self._closing = LingeringClose(reactor)
        self._dead_peers = DeadPeers(reactor, self._sockets, self._on_dead_peer, self._abort_socket)
        self._subscribers: dict[int, Subscriber] = {}
        """All connected clients by descriptor, except those that are being closed."""
        self._client_log = ClientLog(reactor, log, self._subscribers, self._fanout, self._stream)
        self._acceptors: list[Acceptor] = []
        self._is_draining = False
        self.is_stopping = False
        """Whether `stop` was called."""
        self._stall_seconds = options.drain
        """The drain ends when no client has read anything for this long; shorter after SIGTERM."""

    # --- a server's four verbs

    def bind(self, ready: Callable[[], None]) -> None:
        """Listen on the addresses of the options and serve."""
        self.serve(listeners_for(self._options.listen))
        ready()

    def serve(self, listeners: list[Listener], *, shared: bool = False) -> None:
        """Open the file and accept on `listeners`; `shared`: other processes accept on them, too."""
        allow = AllowList(self._options.allow)
        self._acceptors = [
            Acceptor(self._reactor, listener, allow, self._on_connection, self._log, shared=shared)
            for listener in listeners
        ]
        self._stream.open()
        self._fanout.advance()
        self.addresses = {"broadcast": tuple(listener.address for listener in listeners)}
        self._reactor.on_signal(signal.SIGUSR1, self.log_clients)
        gc.freeze()  # the objects of the start live until the end: the collector need not visit them

    def stop(self) -> None:
        """Begin the drain. A second call ends the loop at once."""
        if self.is_stopping:
            self._reactor.stop()
            return
        self.is_stopping = True
        self._stall_seconds = STALL_SECONDS
        self._drain()

    def close(self) -> None:
        """Release all resources. Clients that do not have all their bytes get a reset."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._fanout.close()
        for subscriber in tuple(self._subscribers.values()):
            self._reset(subscriber)
        self._closing.close()
        self._stream.close()

    # --- a client connects and sends its header

    def _on_connection(self, sock: socket.socket, peer: str) -> None:
        subscriber = Subscriber(sock, peer, self._on_event)
        reset_on_close(sock)
        # First: it fails if the kernel is out of memory, and then the acceptor closes the socket.
        self._reactor.register(subscriber.fd, READ, subscriber.handler, functools.partial(self._abort, subscriber))
        self._subscribers[subscriber.fd] = subscriber
        self._headers.add(subscriber)

    def _on_event(self, subscriber: Subscriber, mask: int) -> None:
        if subscriber.state is not AWAITING_HEADER:
            self._fanout.on_event(subscriber, mask)
        elif mask & HANGUP:
            self._reset(subscriber)
        else:
            self._read_header(subscriber)

    def _read_header(self, subscriber: Subscriber) -> None:
        try:
            request = self._headers.read(subscriber)
        except HeaderError:
            self._close_gracefully(subscriber)
            return
        except OSError:
            self._reset(subscriber)
            return
        if request is None:
            return
        if isinstance(request, Where):
            self._answer_where(subscriber)
            return
        if request.needs_end:
            self._update_end()
        subscriber.offset, subscriber.stop = request.range(self._stream.end)
        self._fanout.add(subscriber)
        self._dead_peers.watch()

    def _answer_where(self, subscriber: Subscriber) -> None:
        """Send the first byte and the end of the stream, and close."""
        self._update_end()
        try:
            subscriber.sock.send(AvailableRange(0, self._stream.end).line())  # never short: the buffer is empty
        except OSError:
            self._reset(subscriber)
        else:
            self._close_gracefully(subscriber)

    # --- a connection is closed

    def _close_gracefully(self, subscriber: Subscriber) -> None:
        """The client has all that it will get: send a FIN."""
        self._remove(subscriber)
        self._closing.close_gracefully(subscriber.sock)
        self._dead_peers.watch()

    def _close_now(self, subscriber: Subscriber) -> None:
        """The client has not sent its header in time."""
        self._remove(subscriber)
        self._closing.close_now(subscriber.sock)

    def _reset(self, subscriber: Subscriber) -> None:
        """The client has disconnected, or is cut off at the end of the daemon."""
        self._remove(subscriber)
        self._closing.reset(subscriber.sock)

    def _abort(self, subscriber: Subscriber) -> None:
        """An unexpected error in the work for the client: close the connection, also if it was removed already."""
        if self._subscribers.get(subscriber.fd) is subscriber:
            self._remove(subscriber)
        self._closing.reset(subscriber.sock)

    def _remove(self, subscriber: Subscriber) -> None:
        del self._subscribers[subscriber.fd]
        self._headers.remove(subscriber)
        self._fanout.remove(subscriber)

    # --- dead peers

    def _sockets(self) -> Iterator[socket.socket]:
        return itertools.chain((each.sock for each in self._subscribers.values()), self._closing)

    def _on_dead_peer(self, sock: socket.socket) -> None:
        subscriber = self._subscribers.get(sock.fileno())
        if subscriber is None:
            self._closing.reset(sock)
        elif subscriber.state is REPLAYING:
            # The socket belongs to a replay thread, which receives a hang-up now.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        else:
            self._reset(subscriber)

    def _abort_socket(self, sock: socket.socket) -> None:
        """An unexpected error in the check of this socket."""
        subscriber = self._subscribers.get(sock.fileno())
        if subscriber is None:
            self._closing.reset(sock)
        elif subscriber.state is not REPLAYING:  # a replay thread uses the socket, and finds a dead peer by itself
            self._abort(subscriber)

    # --- the file changes

    def _on_change(self) -> None:
        self._fanout.advance()
        if self._subscribers and not self._dead_peers.watching:
            self._dead_peers.watch()

    def _update_end(self) -> None:
        """Read the present end of the file: inotify may not have reported the last append yet."""
        self._stream.look()
        self._fanout.advance()

    def _on_file_gone(self) -> None:
        if self._options.linger_after_file_is_gone:
            advice = "it is still served; restart the daemon to serve a new file of this name"
            self._log.warning("file gone", file=self._options.file, advice=advice)
        else:
            self._log.warning("file gone", file=self._options.file, drain_seconds=self._options.drain)
            self._file_gone()
            self._drain()

    def _on_failure(self, error: FatalError) -> None:
        raise error

    # --- the drain

    def _drain(self) -> None:
        """Begin the drain, if it has not begun: stop to listen, and let each client's stream end here."""
        if self._is_draining:
            return
        self._is_draining = True
        for acceptor in self._acceptors:
            acceptor.take_queued()
            acceptor.close()
        # A client whose header has arrived is served. All others are closed.
        for subscriber in self._headers.pending():
            try:
                self._read_header(subscriber)
                if subscriber.state is AWAITING_HEADER:
                    self._close_gracefully(subscriber)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._reactor.contain(error, functools.partial(self._abort, subscriber))
        self._update_end()
        self._fanout.stop_at(self._stream.end, self._subscribers.values())
        now = time.monotonic()
        self._check_drain(now + self._options.drain, now, (0, 0))

    def _check_drain(self, deadline: float, progressed_at: float, before: tuple[int, int]) -> None:
        """Stop the loop if the drain is complete, or has to end; otherwise check again later.

        `before`: the bytes sent and the bytes not acknowledged at the last check. `progressed_at`: when they last
        changed. Times are in seconds of the monotonic clock.
        """
        unacknowledged = self._closing.reap()
        if not self._subscribers and not self._closing:
            self._reactor.stop()
            return
        now, progress = time.monotonic(), (self._fanout.sent, unacknowledged)
        if progress != before:
            progressed_at = now
        if now >= deadline or now - progressed_at >= self._stall_seconds:
            self._log.warning("drain incomplete", clients=len(self._subscribers) + len(self._closing))
            self._reactor.stop()
            return
        check = functools.partial(self._check_drain, deadline, progressed_at, progress)
        self._reactor.call_later(DRAIN_CHECK_SECONDS, check)

    # --- reports

    def metrics(self) -> Iterator[Metric]:
        """See `Instrumented`."""
        end = self._stream.end
        served = (each for each in self._subscribers.values() if each.state is not AWAITING_HEADER)
        lag = max((max(0, end - self._fanout.offset(each)) for each in served), default=0)
        yield Metric("gauge", "tailsrv_clients", "Connected clients.", len(self._subscribers))
        yield Metric("counter", "tailsrv_sent_bytes", "Bytes that clients' sockets accepted.", self._fanout.sent)
        yield Metric("gauge", "tailsrv_file_bytes", "Size of the file.", self._stream.size)
        yield Metric("gauge", "tailsrv_committed_bytes", "End of the stream: how far clients may read.", end)
        yield Metric("gauge", "tailsrv_slowest_lag_bytes", "Bytes that the slowest client has not been sent yet.", lag)
        accepted = sum(acceptor.accepted for acceptor in self._acceptors)
        refused = sum(acceptor.refused for acceptor in self._acceptors)
        yield Metric("counter", "tailsrv_accepted_connections", "Connections that were accepted.", accepted)
        yield Metric("counter", "tailsrv_refused_connections", "Connections that --allow refused.", refused)
        yield Metric("counter", "tailsrv_bad_headers", "Connections without a valid header.", self._headers.bad)
        yield unexpected_errors(self._reactor)

    def unhealthy(self) -> str | None:
        """See `Instrumented`."""
        if self._is_draining:
            return "stopping"
        return self._stream.unhealthy()

    def log_clients(self) -> None:
        """Log one line for each client."""
        self._client_log.request()
