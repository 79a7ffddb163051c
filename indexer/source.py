"""Watches FILE for a follower: opens it, reports its growth, and opens it again when its name means another file.

Nothing that happens to FILE ends the daemon once it serves. A file that was moved or deleted is answered from its open
descriptor until there is another one of its name. A name that can't be served (a directory, no permission) and a
shortage of descriptors are tried again every second.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from indexer.store import RETRY_SECONDS
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.shortage import Retried
from tailsrv_runtime.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from indexer.follower import Follower
    from indexer.options import Options
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer


class StreamSource:
    """FILE, as it comes and goes."""

    def __init__(self, reactor: Reactor, options: Options, log: Log, follower: Follower) -> None:
        """Open FILE, or wait for it. Raises `FatalError`, `OSError`."""
        self._reactor = reactor
        self._options = options
        self._log = log
        self._follower = follower
        self._attached: Stream | None = None  # the stream whose descriptor the follower has
        self._gone_fd = -1  # of a file that has lost its name, while the follower reads it
        self._unusable: str | None = None  # why what has FILE's name can't be served
        self._opening = Retried(reactor, log, "watching the file", self._try_to_open, file=options.file)
        self._reopening: Timer | None = None
        self._stream: Stream | None = self._open()  # None while it can't be watched
        self._on_changed()

    def close(self) -> None:
        """Stop watching, and close FILE."""
        self._opening.cancel()
        self._cancel_reopening()
        self._close_stream()
        self._close_gone()

    def reopen(self) -> None:
        """The descriptor of FILE will never work again: open the file by its name."""
        self._follower.detach()
        self._close_gone()
        self._close_stream()
        self._open_again()

    def look(self) -> None:
        """Report what was committed until now, whether the kernel's event has come or not."""
        stream = self._stream
        if stream is None:
            return
        before = stream.end
        try:
            stream.look()
        except FatalError as error:
            self._on_failed(error)
            return
        if stream.end != before:
            self._on_changed()

    def problems(self) -> Iterator[str]:
        """Why FILE can't be followed, the most important reason first."""
        if self._gone_fd >= 0:
            yield f"{self._options.file} is gone"
        stream = None if self._stream is None else self._stream.unhealthy()
        yield from filter(None, (self._opening.paused, self._unusable, stream))

    # --- opening

    def _open(self) -> Stream:
        """Watch FILE, and open it if it exists. Raises `FatalError`, and `OSError` for a shortage."""
        stream = Stream(
            self._reactor,
            self._options.file,
            self._log,
            changed=self._on_changed,
            gone=self._on_gone,
            failed=self._on_failed,
            use_mark=self._options.commit_mark,
            poll_seconds=self._options.poll,
        )
        try:
            stream.open()
        except BaseException:
            stream.close()
            raise
        return stream

    def _open_again(self) -> None:
        """Open what has FILE's name now, or as soon as there is a file that can be served."""
        self._cancel_reopening()
        self._opening()

    def _cancel_reopening(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None

    def _try_to_open(self) -> None:
        try:
            self._stream = self._open()
        except FatalError as error:
            self._on_failed(error)
            return
        self._unusable = None
        # Not from here: a handler of the stream before may be running.
        self._reactor.post(self._on_changed)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _close_gone(self) -> None:
        if self._gone_fd >= 0:
            os.close(self._gone_fd)
            self._gone_fd = -1

    # --- events

    def _on_changed(self) -> None:
        stream = self._stream
        if stream is None or stream.fd < 0:
            return
        if self._attached is stream:
            self._follower.advance(stream.end)
            return
        self._attached = stream
        try:
            self._follower.attach(stream.fd, stream.end)
        except FatalError as error:
            self._on_failed(error)
            return
        self._close_gone()

    def _on_gone(self) -> None:
        """Go on answering from the open file, and wait for another one of its name."""
        advice = "what it held is answered until there is a new file"
        self._log.warning("the file is gone", file=self._options.file, advice=advice)
        self._on_changed()
        if self._stream is not None:
            # Its descriptor is taken over: for a copy of it there might be none.
            self._gone_fd, self._stream.fd = self._stream.fd, -1
        self._close_stream()
        self._open_again()

    def _on_failed(self, error: FatalError) -> None:
        """What has FILE's name can't be served: try again, until somebody has mended it."""
        if self._unusable != str(error):
            self._log.error("the file cannot be served", error=str(error))
        self._unusable = str(error)
        self._close_stream()
        self._cancel_reopening()
        self._reopening = self._reactor.call_later(RETRY_SECONDS, self._open_again)
