"""Worker processes that walk a long stretch of the stream while the loop goes on answering.

Processes, not threads: counting and walking hold the interpreter's lock, and two cores count twice as fast. They are
forked, which costs a millisecond and shares what is loaded already; a worker gives back every descriptor but the
stream and its pipe, so that it keeps no lock, no listener and no client alive. Without a reader of its pipe it ends.

Segments are dealt out in turn and taken in turn: the one that is next is waited for, the others wait in their pipes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from array import array
from itertools import islice
from typing import TYPE_CHECKING, Final

from indexer.segments import SegmentResult, walk_prefixed, walk_terminated
from indexer.walker import RewrittenError
from tailsrv_runtime.reactor import READ
from tailsrv_runtime.shortage import spare_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from tailsrv_formats.framing import Framing
    from tailsrv_runtime.reactor import Reactor

WORKERS: Final = 4
"""At most; one for each core that we may use, where segments can be walked at the same time."""

SEGMENT_ENTRIES: Final = 512
"""What one segment yields: it is put down in one turn of the loop, a quarter of a millisecond."""

SEGMENT_BYTES: Final = (1 << 16, 1 << 21)
"""The least and the most that a segment is."""

NICENESS: Final = 5
"""Building makes way for answering."""

PIPE_BYTES: Final = 1 << 16

REAP_SECONDS: Final = 0.05

_FRAME: Final = struct.Struct("<qqqqqq")


class Builder:
    """Walks from a boundary to `end`, and tells what it finds, segment by segment and in order.

    ``found(SegmentResult)`` for each segment, until it returns False; then, or at the end, ``ended()`` once.
    """

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        framing: Framing,
        *,
        interval: int,
        seed: int,
        begin: int,
        end: int,
        found: Callable[[SegmentResult], bool],
        ended: Callable[[], None],
    ) -> None:
        """Start the workers. Raises `OSError` where that can't be."""
        self._reactor = reactor
        self._found = found
        self._ended = ended
        self._buffers: list[bytearray] = []
        self._pipes: list[int] = []
        self._pids: list[int] = []
        self._turn = 0
        least, most = SEGMENT_BYTES
        size = min(max(interval * SEGMENT_ENTRIES, least), most)
        workers = min(WORKERS, len(os.sched_getaffinity(0))) if framing.terminator else 1
        walk_all = walk_terminated if framing.terminator else walk_prefixed

        def walk(worker: int) -> Iterator[SegmentResult]:
            mine = islice(_segments(begin, end, size), worker, None, workers)
            return walk_all(lambda offset, count: os.pread(fd, count, offset), framing, interval, seed, mine)

        try:
            with spare_descriptors():
                for worker in range(workers):
                    self._start(fd, walk(worker))
            self._listen()
        except OSError:
            self.stop()
            raise

    def _start(self, fd: int, walk: Iterator[SegmentResult]) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._pipes.append(read_end)
        self._buffers.append(bytearray())
        # No signal must reach the child while our handler is still its own: it would tell the loop to stop.
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            pid = os.fork()
            if pid == 0:
                _work(fd, write_end, walk)
            self._pids.append(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            os.close(write_end)

    def stop(self) -> None:
        """End the workers; nothing more is told."""
        for pipe in self._pipes:
            self._reactor.unregister(pipe)
            os.close(pipe)
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _killed.extend(self._pids)
        self._pipes, self._pids = [], []
        _reap(self._reactor)

    # --- what they find

    def _listen(self) -> None:
        self._reactor.register(self._pipes[self._turn], READ, self._on_ready)

    def _on_ready(self, _mask: int) -> None:
        if not self._pipes:
            return
        try:
            data = os.read(self._pipes[self._turn], PIPE_BYTES)
        except OSError:
            data = b""  # what has been told so far is right; the loop goes on from there
        buffer = self._buffers[self._turn]
        buffer += data
        if not data and not _is_whole(buffer):
            self._end()
        elif _is_whole(buffer):
            self._take()

    def _take(self) -> None:
        """Tell of one segment, and turn to the next."""
        if not self._pipes:
            return
        if not self._found(_cut_frame(self._buffers[self._turn])):
            self._end()
            return
        self._reactor.unregister(self._pipes[self._turn])
        self._turn = (self._turn + 1) % len(self._pipes)
        if _is_whole(self._buffers[self._turn]):
            self._reactor.post(self._take)  # the loop has other work too
            return
        try:
            self._listen()
        except OSError:
            self._end()  # the kernel is short of memory: the loop goes on alone

    def _end(self) -> None:
        self.stop()
        self._ended()


_killed: list[int] = []  # workers that have not been seen to end


def _reap(reactor: Reactor) -> None:
    """Wait for no worker: one that is inside a read ends when the disk answers, which may take long."""
    for pid in tuple(_killed):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _killed.remove(pid)
    if _killed:
        reactor.call_later(REAP_SECONDS, lambda: _reap(reactor))


def _segments(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + size, end)) for at in range(begin, end, size))


# --- frames: six numbers, the last of which says how many follow


def _encode_frame(found: SegmentResult) -> bytes:
    first, fingerprint, boundary, messages, corrupt, entries = found
    return _FRAME.pack(first, fingerprint, boundary, messages, corrupt, len(entries)) + array("Q", entries).tobytes()


def _is_whole(buffer: bytearray) -> bool:
    return len(buffer) >= _FRAME.size and len(buffer) >= _FRAME.size + 8 * _FRAME.unpack_from(buffer)[5]


def _cut_frame(buffer: bytearray) -> SegmentResult:
    first, fingerprint, boundary, messages, corrupt, length = _FRAME.unpack_from(buffer)
    end = _FRAME.size + 8 * length
    entries = array("Q", bytes(buffer[_FRAME.size : end]))
    del buffer[:end]
    return SegmentResult(first, fingerprint, boundary, messages, bool(corrupt), entries)


# --- the worker


def _work(fd: int, pipe: int, walk: Iterator[SegmentResult]) -> NoReturn:
    """The child's life. Whatever goes wrong in it, the parent notices by the end of the pipe and goes on by itself."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        low, high = sorted((fd, pipe))
        for begin, end in ((3, low), (low + 1, high), (high + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(begin, end)
        os.nice(NICENESS)
        for found in walk:
            frame = _encode_frame(found)
            while frame:
                frame = frame[os.write(pipe, frame) :]
        code = 0
    except (EOFError, RewrittenError, OSError):
        pass  # the stream was cut or rewritten, or nobody listens: the parent sees as much by itself
    finally:
        os._exit(code)
