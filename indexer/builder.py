"""Builder processes: they walk a long part of the stream while the loop goes on answering.

Processes, not threads: counting and walking hold the interpreter's lock, and two cores count twice as fast. They are
forked, which takes a millisecond and shares what is loaded already. A process closes every descriptor but the stream's
and its pipe's, so that it keeps no lock, no listener and no client alive; it ends when nobody reads its pipe.

The processes get the segments of the stream in turn, and the loop reads their results in the same order: it waits for
the next one, and the others wait in their pipes.
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

PROCESSES: Final = 4
"""At most: one for each core that we may use, if segments can be walked at the same time."""

SEGMENT_ENTRIES: Final = 512
"""Entries of one segment: the loop adds them in one turn, which takes a quarter of a millisecond."""

SEGMENT_BYTES: Final = (1 << 16, 1 << 21)
"""The smallest and the largest segment."""

NICENESS: Final = 5
"""Answering has priority over building."""

PIPE_BYTES: Final = 1 << 16

REAP_SECONDS: Final = 0.05

_FRAME: Final = struct.Struct("<qqqqqq")


class Builder:
    """Walks from a boundary to `end`.

    Calls ``on_result(result)`` for each segment, in order, until it returns False; then, or at the end, ``on_end()``.
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
        on_result: Callable[[SegmentResult], bool],
        on_end: Callable[[], None],
    ) -> None:
        """Start the processes. Raises `OSError` if there are not enough descriptors or processes."""
        self._reactor = reactor
        self._on_result = on_result
        self._on_end = on_end
        self._buffers: list[bytearray] = []
        self._pipes: list[int] = []
        self._pids: list[int] = []
        self._turn = 0
        least, most = SEGMENT_BYTES
        size = min(max(interval * SEGMENT_ENTRIES, least), most)
        processes = min(PROCESSES, len(os.sched_getaffinity(0))) if framing.terminator else 1
        walk_all = walk_terminated if framing.terminator else walk_prefixed

        def walk(process: int) -> Iterator[SegmentResult]:
            mine = islice(_segments(begin, end, size), process, None, processes)
            return walk_all(lambda offset, count: os.pread(fd, count, offset), framing, interval, seed, mine)

        try:
            with spare_descriptors():
                for process in range(processes):
                    self._start(fd, walk(process))
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
        """End the processes; nothing is called any more."""
        for pipe in self._pipes:
            self._reactor.unregister(pipe)
            os.close(pipe)
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _killed.extend(self._pids)
        self._pipes, self._pids = [], []
        _reap(self._reactor)

    # --- results

    def _listen(self) -> None:
        self._reactor.register(self._pipes[self._turn], READ, self._on_ready)

    def _on_ready(self, _mask: int) -> None:
        if not self._pipes:
            return
        try:
            data = os.read(self._pipes[self._turn], PIPE_BYTES)
        except OSError:
            data = b""  # the results so far are right; the loop goes on from there
        buffer = self._buffers[self._turn]
        buffer += data
        if not data and not _is_whole(buffer):
            self._end()
        elif _is_whole(buffer):
            self._read_result()

    def _read_result(self) -> None:
        """Report one result, and wait for the next."""
        if not self._pipes:
            return
        if not self._on_result(_cut_frame(self._buffers[self._turn])):
            self._end()
            return
        self._reactor.unregister(self._pipes[self._turn])
        self._turn = (self._turn + 1) % len(self._pipes)
        if _is_whole(self._buffers[self._turn]):
            self._reactor.post(self._read_result)  # the loop has other work too
            return
        try:
            self._listen()
        except OSError:
            self._end()  # the kernel is short of memory: the loop goes on alone

    def _end(self) -> None:
        self.stop()
        self._on_end()


_killed: list[int] = []  # processes that have not been seen to end


def _reap(reactor: Reactor) -> None:
    """Reap without waiting: a process that is inside a read ends when the disk answers, which may take long."""
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


def _encode_frame(result: SegmentResult) -> bytes:
    first, fingerprint, boundary, messages, is_corrupt, entries = result
    return _FRAME.pack(first, fingerprint, boundary, messages, is_corrupt, len(entries)) + array("Q", entries).tobytes()


def _is_whole(buffer: bytearray) -> bool:
    return len(buffer) >= _FRAME.size and len(buffer) >= _FRAME.size + 8 * _FRAME.unpack_from(buffer)[5]


def _cut_frame(buffer: bytearray) -> SegmentResult:
    first, fingerprint, boundary, messages, is_corrupt, length = _FRAME.unpack_from(buffer)
    end = _FRAME.size + 8 * length
    entries = array("Q", bytes(buffer[_FRAME.size : end]))
    del buffer[:end]
    return SegmentResult(first, fingerprint, boundary, messages, bool(is_corrupt), entries)


# --- the process


def _work(fd: int, pipe: int, walk: Iterator[SegmentResult]) -> NoReturn:
    """Run the child. Whatever goes wrong in it, the parent sees the end of the pipe and goes on alone."""
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
        for result in walk:
            frame = _encode_frame(result)
            while frame:
                frame = frame[os.write(pipe, frame) :]
        code = 0
    except (EOFError, RewrittenError, OSError):
        pass  # the stream was cut or rewritten, or nobody reads: the parent finds out by itself
    finally:
        os._exit(code)
