"""The broadcaster: one file, any number of clients.

This is where connections, headers and the ends of things meet: the bytes themselves go through `fanout`. One thread;
nothing here blocks.
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

from tailsrv.deadpeers import DeadPeers
from tailsrv.fanout import Fanout
from tailsrv.lingering_close import LingeringClose, cut_on_close
from tailsrv.subscriber import ASKING, REPLAYING, Subscriber
from tailsrv_formats.header import HEADER_BYTES, HeaderError, Reach, Where, parse
from tailsrv_runtime import standard_error
from tailsrv_runtime.acceptor import Acceptor
from tailsrv_runtime.access import AllowList
from tailsrv_runtime.deadlines import Deadlines
from tailsrv_runtime.listeners import Listener, listeners_for
from tailsrv_runtime.logs import Repeated, printable
from tailsrv_runtime.metrics import Metric, unexpected_errors
from tailsrv_runtime.reactor import HANGUP, READ
from tailsrv_runtime.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv.options import Options
    from tailsrv_runtime.errors import FatalError
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor

    Ending = Callable[[], None]

DRAIN_LOOK_SECONDS: Final = 0.02
"""How often it is looked whether clients have acknowledged their last bytes, while the daemon ends."""

STALLED_SECONDS: Final = 1.0
"""Who takes nothing for so long while the daemon stops is not waited for."""

DESCRIBED_PER_ROUND: Final = 64
"""Clients that SIGUSR1 logs before others have a turn."""


def _nothing() -> None:
    pass


class Broadcaster:
    """Serves one file. A `Server` for `run_daemon`."""

    def __init__(
        self, reactor: Reactor, options: Options, log: Log, *, stream_log: Log | None = None, ending: Ending = _nothing
    ) -> None:
        """`stream_log` is where the file's own events go, if elsewhere; `ending()` is called when the file has gone."""
        self._ending = ending
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._reactor = reactor
        self._options = options
        self._log = log
        self._stream = Stream(
            reactor,
            options.file,
            stream_log or log,
            changed=self._changed,
            gone=self._gone,
            failed=self._failed,
            use_mark=options.commit_mark,
            poll_seconds=options.poll,
        )
        self._fanout = Fanout(
            reactor,
            self._stream,
            self._finished,
            self._lost,
            abort=self._abort,
            replay_rate=options.replay_rate,
        )
        self._closer = LingeringClose(reactor)
        self._dead_peers = DeadPeers(reactor, self._sockets, self._died, self._abort_socket)
        self._headers: dict[Subscriber, bytes] = {}
        self._header_limits: Deadlines[Subscriber] = Deadlines(
            reactor, options.header_timeout, self._too_late, self._abort
        )
        self._subscribers: dict[int, Subscriber] = {}
        self._acceptors: list[Acceptor] = []
        self.draining = False
        """Whether its end has begun: it was asked for, or the file has gone."""
        self.stopping = False
        """Whether its end was asked for."""
        self._patience = 0.0
        self._describing = self._describe_again = False
        self._bad_headers = 0
        self._log_bad_header = Repeated(log.warning, "bad header")

    # --- a server's four verbs

    def bind(self, ready: Callable[[], None]) -> None:
        """Open the file and listen."""
        self.serve(listeners_for(self._options.listen))
        ready()

    def serve(self, listeners: list[Listener], *, shared: bool = False) -> None:
        """Open the file and accept on `listeners`, which other processes may share with us."""
        allow = AllowList(self._options.allow)
        self._acceptors = [
            Acceptor(self._reactor, listener, allow, self._connected, self._log, shared=shared)
            for listener in listeners
        ]
        self._stream.open()
        self._fanout.advance()
        self.addresses = {"broadcast": tuple(listener.address for listener in listeners)}
        self._reactor.on_signal(signal.SIGUSR1, self.describe)
        gc.freeze()  # what stands now stays: no collection need look at it again

    def stop(self) -> None:
        """Send what is due to those who read, then end. The second time: end."""
        if self.stopping:
            self._reactor.stop()
            return
        self.stopping = True
        self._patience = STALLED_SECONDS
        self._drain()

    def close(self) -> None:
        """Give everything back. It is a reset for clients that are cut off from bytes that are due to them."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._fanout.close()
        for subscriber in tuple(self._subscribers.values()):
            self._forget(subscriber)
            self._closer.cut(subscriber.sock)
        self._closer.close()
        self._stream.close()

    # --- connections and headers

    def _connected(self, sock: socket.socket, peer: str) -> None:
        subscriber = Subscriber(sock, peer)
        subscriber.handler = functools.partial(self._on_event, subscriber)
        cut_on_close(sock)
        # Before it is known anywhere: this fails without memory, and the acceptor closes the socket then.
        self._reactor.register(subscriber.fd, READ, subscriber.handler, functools.partial(self._abort, subscriber))
        self._subscribers[subscriber.fd] = subscriber
        self._headers[subscriber] = b""
        self._header_limits.start(subscriber)

    def _on_event(self, subscriber: Subscriber, mask: int) -> None:
        if subscriber.state is not ASKING:
            self._fanout.on_event(subscriber, mask)
        elif mask & HANGUP:
            self._lost(subscriber)
        else:
            self._read_header(subscriber)

    def _read_header(self, subscriber: Subscriber) -> None:
        received = self._headers[subscriber]
        try:
            data = subscriber.sock.recv(HEADER_BYTES - len(received))
        except BlockingIOError:
            return
        except OSError:
            self._lost(subscriber)
            return
        received += data
        try:
            request = parse(received, ended=not data)
        except HeaderError as error:
            self._bad_headers += 1
            # A connection that ends without a byte is somebody's health check.
            if received:
                self._log_bad_header(peer=subscriber.peer, error=str(error), header=printable(received))
            self._finished(subscriber)
            return
        if request is None:
            self._headers[subscriber] = received
            return
        self._forget_header(subscriber)
        if isinstance(request, Where):
            self._answer_where(subscriber)
            return
        if request.needs_end:
            self._look()
        subscriber.offset, subscriber.stop = request.range(self._stream.end)
        self._fanout.add(subscriber)
        self._dead_peers.watch()

    def _answer_where(self, subscriber: Subscriber) -> None:
        """Say which bytes there are, and close."""
        self._look()
        try:
            subscriber.sock.send(Reach(0, self._stream.end).line())  # whole: nothing is in the buffer yet
        except OSError:
            self._lost(subscriber)
        else:
            self._finished(subscriber)

    def _too_late(self, subscriber: Subscriber) -> None:
        self._bad_headers += 1
        self._log_bad_header(peer=subscriber.peer, error="too late", header=printable(self._headers[subscriber]))
        self._forget(subscriber)
        self._closer.abandon(subscriber.sock)

    def _forget_header(self, subscriber: Subscriber) -> None:
        if self._headers.pop(subscriber, None) is not None:
            self._header_limits.cancel(subscriber)

    def _finished(self, subscriber: Subscriber) -> None:
        self._forget(subscriber)
        self._closer.end(subscriber.sock)

    def _lost(self, subscriber: Subscriber) -> None:
        self._forget(subscriber)
        self._closer.cut(subscriber.sock)

    def _abort(self, subscriber: Subscriber) -> None:
        """Close a connection, however far it has come, after an unexpected error in its service."""
        if self._subscribers.get(subscriber.fd) is subscriber:
            self._forget(subscriber)
        self._closer.cut(subscriber.sock)

    def _abort_socket(self, sock: socket.socket) -> None:
        subscriber = self._subscribers.get(sock.fileno())
        if subscriber is None:
            self._closer.cut(sock)
        elif subscriber.state is not REPLAYING:  # its thread will notice by itself
            self._abort(subscriber)

    def _forget(self, subscriber: Subscriber) -> None:
        del self._subscribers[subscriber.fd]
        self._forget_header(subscriber)
        self._fanout.remove(subscriber)

    def _sockets(self) -> Iterator[socket.socket]:
        return itertools.chain((each.sock for each in self._subscribers.values()), self._closer)

    def _died(self, sock: socket.socket) -> None:
        subscriber = self._subscribers.get(sock.fileno())
        if subscriber is None:
            self._closer.cut(sock)
        elif subscriber.state is REPLAYING:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # which its thread notices
        else:
            self._lost(subscriber)

    # --- the file

    def _changed(self) -> None:
        self._fanout.advance()
        if not self._dead_peers.watching:
            self._dead_peers.watch()

    def _look(self) -> None:
        """Know the end as it is now: what the kernel has told is what was a moment ago."""
        self._stream.look()
        self._fanout.advance()

    def _gone(self) -> None:
        if self._options.linger_after_file_is_gone:
            self._log.warning("file gone", file=self._options.file, advice="serving it until this daemon is stopped")
        else:
            self._log.warning("file gone", file=self._options.file, drain_seconds=self._options.drain)
            self._patience = STALLED_SECONDS if self.stopping else self._options.drain
            self._ending()
            self._drain()

    def _failed(self, error: FatalError) -> None:
        raise error

    # --- the end

    def _drain(self) -> None:
        """Send what is due to those who read, then stop.

        That is when all have it, when the time for it is over, or when nobody took anything for `_patience` seconds.
        """
        if self.draining:
            return
        self.draining = True
        for acceptor in self._acceptors:
            acceptor.take_queued()
            acceptor.close()
        # Who has asked by now is served; nobody waits for who has not.
        for subscriber in tuple(self._headers):
            try:
                self._read_header(subscriber)
                if subscriber.state is ASKING and subscriber.fd in self._subscribers:
                    self._finished(subscriber)
            except Exception as error:  # noqa: BLE001 - contained, or raised again
                self._reactor.contain(error, functools.partial(self._abort, subscriber))
        self._look()
        self._fanout.stop_at(self._stream.end, self._subscribers.values())
        now = time.monotonic()
        self._watch_drain(now + self._options.drain, now, (0, 0))

    def _watch_drain(self, end: float, since: float, before: tuple[int, int]) -> None:
        left = self._closer.reap()
        if not self._subscribers and not self._closer:
            self._reactor.stop()
            return
        now, progress = time.monotonic(), (self._fanout.sent, left)
        if progress != before:
            since = now
        if now >= end or now - since >= self._patience:
            self._log.warning("clients did not read", clients=len(self._subscribers) + len(self._closer))
            self._reactor.stop()
            return
        self._reactor.call_later(DRAIN_LOOK_SECONDS, functools.partial(self._watch_drain, end, since, progress))

    # --- what can be asked

    def metrics(self) -> Iterator[Metric]:
        """See `Instrumented`."""
        end = self._stream.end
        lags = (
            max(0, end - self._fanout.offset(each)) for each in self._subscribers.values() if each.state is not ASKING
        )
        yield Metric("gauge", "tailsrv_clients", "Connected clients.", len(self._subscribers))
        yield Metric("counter", "tailsrv_sent_bytes", "Bytes given to clients' sockets.", self._fanout.sent)
        yield Metric("gauge", "tailsrv_file_bytes", "Size of the file.", self._stream.size)
        yield Metric("gauge", "tailsrv_committed_bytes", "How far clients may read.", end)
        yield Metric("gauge", "tailsrv_slowest_lag_bytes", "What the slowest client still lacks.", max(lags, default=0))
        accepted = sum(acceptor.accepted for acceptor in self._acceptors)
        refused = sum(acceptor.refused for acceptor in self._acceptors)
        yield Metric("counter", "tailsrv_accepted_connections", "Connections that were let in.", accepted)
        yield Metric("counter", "tailsrv_refused_connections", "Connections that --allow kept out.", refused)
        yield Metric("counter", "tailsrv_bad_headers", "Connections without a proper header.", self._bad_headers)
        yield unexpected_errors(self._reactor)

    def unhealthy(self) -> str | None:
        """See `Instrumented`."""
        if self.draining:
            return "stopping"
        return self._stream.unhealthy()

    def describe(self) -> None:
        """Log each client, some at a time, as fast as the reader of the log takes the lines."""
        if self._describing:
            self._describe_again = True  # with those who have come since
            return
        self._describing = True
        self._describe_some(list(self._subscribers.values()))

    def _describe_some(self, left: list[Subscriber]) -> None:
        now = time.monotonic()
        for subscriber in left[-DESCRIBED_PER_ROUND:]:
            if self._subscribers.get(subscriber.fd) is not subscriber:
                continue  # it has left meanwhile
            offset = self._fanout.offset(subscriber)
            self._log.info(
                "client",
                peer=subscriber.peer,
                state=subscriber.state,
                offset=offset,
                lag=max(0, self._stream.end - offset),
                seconds=round(now - subscriber.since, 3),
            )
        del left[-DESCRIBED_PER_ROUND:]
        if not left:
            self._describing = False
            if not self._describe_again:
                return
            self._describe_again, self._describing = False, True
            left = list(self._subscribers.values())
        go_on = functools.partial(self._describe_some, left)
        if standard_error.writer().waits:
            standard_error.writer().call_when_room(go_on)
        else:
            self._reactor.call_later(0, go_on)
