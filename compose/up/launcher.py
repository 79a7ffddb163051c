"""Watches the daemons: shows their logs, says when all listen, ends them together.

One loop, and nothing in it waits: not for a daemon, nor for the reader of standard error or standard output, nor for
the disk of the log file.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import click
import msgspec

from compose.up.lines import LineSplitter, LogFile, say_dropped
from compose.up.table import describe
from tailsrv_runtime import standard_error
from tailsrv_runtime.daemon import Startup, feed_watchdog, write_ready
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.line_writer import LineWriter
from tailsrv_runtime.notifier import Notifier
from tailsrv_runtime.reactor import READ, Reactor
from tailsrv_runtime.standard_error import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from compose.up.options import Options
    from compose.up.parts import Part
    from tailsrv_runtime.reactor import Timer

READY_SECONDS: Final = 30.0
"""After this time a line says which daemon is not ready."""

ORDER_SECONDS: Final = 5.0
"""How long the next daemon waits with its end for the one that is stopped before it."""

STOP_SECONDS: Final = 30.0
"""How long a daemon may take to commit and to drain before it is killed."""

KILL_SECONDS: Final = 5.0
"""How long a killed process may take to end: one that waits for a broken disk never does."""

READ_BYTES: Final = 1 << 16


class Launcher:
    """Started parts, watched until Ctrl-C or SIGTERM, or until one of them ends by itself."""

    def __init__(self, options: Options, parts: list[Part], problem: str | None) -> None:
        """`problem`: why not all of them could be started; then the others are only stopped again."""
        self._options = options
        self._parts = parts
        self._problem = problem
        self._width = max((len(part.name) for part in parts), default=0)
        self._alive = list(parts)
        self._untold = list(parts)
        self._logged = {part.pid: LineSplitter() for part in parts}
        self._found: dict[str, list[str]] = {}
        self._unready = list(parts)
        self._stopping = self._failed = self._killed = False
        self._reactor = Reactor()
        self._notifier = Notifier(self._reactor)
        self._startup = Startup(self._reactor, self._notifier)
        self._order: Timer | None = None
        self._error = standard_error.writer()
        self._error.report = say_dropped
        self._output = LineWriter(1)
        self._colours = sys.stderr.isatty()
        self._log_file: LogFile | None = None

    def run(self) -> int:
        """Watch until all have ended; the exit code: 0 when that was asked for and went well."""
        reactor = self._reactor
        self._error.attach(reactor)
        self._output.attach(reactor)
        reactor.on_signal(signal.SIGINT, self._on_signal)
        reactor.on_signal(signal.SIGTERM, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            reactor.on_signal(signal.SIGHUP, self._stop)
        reactor.on_signal(signal.SIGCHLD, self._reap)
        try:
            if self._problem is not None:
                self._fail(self._problem)
            elif self._options.log_file is not None:
                self._open_log_file(self._options.log_file)
            for part in self._parts:
                self._watch(part.log, self._logged[part.pid], functools.partial(self._show, part))
                self._watch(part.ready, LineSplitter(), functools.partial(self._is_ready, part))
            reactor.call_later(READY_SECONDS, self._tell_of_unready)
            feed_watchdog(reactor, self._notifier)
            self._reap()  # those that have ended before the handler was there
            if self._alive:
                reactor.run()
            for part in self._parts:
                self._drain(part)
        finally:
            self._close()
        return 1 if self._failed else 0

    def _close(self) -> None:
        if self._log_file is not None:
            self._log_file.close()
        self._notifier.close()
        self._output.detach()
        self._error.detach()
        self._reactor.close()

    def _open_log_file(self, path: str) -> None:
        try:
            self._log_file = LogFile(path, self._reactor)
        except FatalError as error:
            self._fail(str(error))

    # --- what the daemons say

    def _watch(self, fd: int, splitter: LineSplitter, take: Callable[[bytes], None]) -> None:
        """Give each line that comes through a pipe to `take`."""

        def on_ready(_mask: int) -> None:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            for line in splitter.feed(data) if data else splitter.end():
                take(line)
            if not data:
                self._reactor.unregister(fd)

        os.set_blocking(fd, False)
        self._reactor.register(fd, READ, on_ready)

    def _show(self, part: Part, line: bytes) -> None:
        label = f"{part.name:<{self._width}} | "
        text = line.decode(errors="backslashreplace")
        self._error.write(f"{click.style(label, fg='cyan') if self._colours else label}{text}\n")
        if self._log_file is not None:
            self._log_file.write(f"{label}{text}\n")

    def _drain(self, part: Part) -> None:
        """Show what an ended daemon has written at last; a process that it left behind is not waited for."""
        splitter = self._logged[part.pid]
        try:
            while data := os.read(part.log, READ_BYTES):
                for line in splitter.feed(data):
                    self._show(part, line)
        except BlockingIOError:
            pass
        for line in splitter.end():
            self._show(part, line)

    def _is_ready(self, part: Part, line: bytes) -> None:
        self._found |= msgspec.json.decode(line)
        self._unready.remove(part)
        if self._unready or self._stopping:
            return
        self._startup.end()
        addresses = {
            "broadcast": self._found["broadcast"][0],
            "collate": self._found["raw"][0],
            "acknowledged": self._found["acknowledged"][0],
            "index": self._found["index"][0],
        }
        self._output.write(describe(self._options.file, self._options.framing, addresses) + "\n")
        if self._options.ready_fd is not None:
            problem = write_ready(self._options.ready_fd, {"addresses": list(addresses.values())})
            if problem is not None:
                self._complain(f"nobody reads --ready-fd {self._options.ready_fd}: {problem}")
        self._notifier.send("READY=1", until_taken=True)

    def _tell_of_unready(self) -> None:
        if self._unready and not self._stopping:
            names = " and ".join(part.name for part in self._unready)
            self._complain(f"still waiting for {names} after {READY_SECONDS:.0f} s; the log lines say what for")

    # --- their ends

    def _on_signal(self) -> None:
        if self._stopping:
            self._kill_all()
        else:
            self._stop()

    def _stop(self) -> None:
        """Stop one after the other, the writer first: its last commit is still served and indexed."""
        if not self._stopping:
            self._stopping = True
            self._startup.end()
            self._notifier.send("STOPPING=1", until_taken=True)
            self._stop_next()

    def _stop_next(self) -> None:
        if self._order is not None:
            self._order.cancel()
        self._untold = [part for part in self._untold if part in self._alive]
        if self._untold:
            part = self._untold.pop(0)
            os.kill(part.pid, signal.SIGTERM)  # it is not reaped yet, so the number is still its own
            self._reactor.call_later(STOP_SECONDS, functools.partial(self._kill, part))
            self._order = self._reactor.call_later(ORDER_SECONDS, self._stop_next)

    def _kill(self, part: Part) -> None:
        if part in self._alive:
            os.kill(part.pid, signal.SIGKILL)
            self._reactor.call_later(KILL_SECONDS, functools.partial(self._give_up, part))

    def _kill_all(self) -> None:
        """Somebody will not wait any longer."""
        if not self._killed:
            self._killed = True
            for part in self._alive:
                self._kill(part)

    def _give_up(self, part: Part) -> None:
        if part in self._alive:
            self._fail(f"{part.name} (process {part.pid}) has been killed and does not end; look at its disk")
            self._alive.remove(part)
            self._after_end()

    def _reap(self) -> None:
        for part in tuple(self._alive):
            pid, status = os.waitpid(part.pid, os.WNOHANG)
            if not pid:
                continue
            self._alive.remove(part)
            code = os.waitstatus_to_exitcode(status)
            if not self._stopping:
                # One that ends by itself, however it ends, is a failure of the whole.
                self._fail(f"{part.name} {_how(code)}; stopping the others")
            elif code not in {0, -signal.SIGTERM}:  # the latter: it was stopped before it had begun
                self._fail(f"{part.name} {_how(code)}")
            self._after_end()

    def _after_end(self) -> None:
        if not self._alive:
            self._reactor.stop()
        elif not any(part in self._alive and part not in self._untold for part in self._parts):
            self._stop_next()

    def _fail(self, message: str) -> None:
        self._failed = True
        self._complain(message)
        self._stop()

    def _complain(self, message: str) -> None:
        self._error.write(one_line(f"tailsrv-up: {message}") + "\n")


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
