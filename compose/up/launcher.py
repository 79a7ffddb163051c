"""Watches the daemons: shows their logs, reports when all listen, stops them together.

One loop, which never waits: not for a daemon, not for the readers of standard error and standard output, and not for
the disk of the log file.
"""

from __future__ import annotations

import functools
import os
import signal
from typing import TYPE_CHECKING, Final

import click
import msgspec

from compose.up.banner import banner
from compose.up.lines import LineSplitter, LogFile
from tailsrv_runtime import standard_error
from tailsrv_runtime.daemon import Startup, feed_watchdog, write_ready
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.line_writer import LineWriter
from tailsrv_runtime.logs import is_console
from tailsrv_runtime.notifier import Notifier
from tailsrv_runtime.reactor import READ, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from compose.up.children import ChildProcess
    from compose.up.options import Options
    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Timer

READY_SECONDS: Final = 30.0
"""After this time a warning names the daemons that are not ready."""

ORDER_SECONDS: Final = 5.0
"""After this time the next daemon is stopped, even if the one before it has not ended."""

STOP_SECONDS: Final = 30.0
"""How long a daemon may take to commit and to drain before it is killed."""

KILL_SECONDS: Final = 5.0
"""How long a killed process may take to end. (One that waits for a broken disk never does.)"""

READ_BYTES: Final = 1 << 16


class Launcher:
    """Started child processes, watched until Ctrl-C or SIGTERM, or until one of them ends by itself."""

    def __init__(self, options: Options, children: list[ChildProcess], error: str | None, log: Log) -> None:
        """`error`: why not all of them could be started; then the others are stopped at once."""
        self._options = options
        self._children = children
        self._start_error = error
        self._log = log
        self._alive = list(children)
        self._to_stop = list(children)
        self._unready = list(children)
        self._splitters = {child.pid: LineSplitter() for child in children}
        self._bound: dict[str, list[str]] = {}
        """The addresses of the daemons that are ready, by role."""
        self._stopping = self._failed = self._killed = False
        self._reactor = Reactor()
        self._notifier = Notifier(self._reactor)
        self._startup = Startup(self._reactor, self._notifier)
        self._next_stop: Timer | None = None
        self._error = standard_error.writer()
        self._output = LineWriter(1)
        self._is_json = not is_console(options.log_format)
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
            if self._start_error is not None:
                self._fail("failed", error=self._start_error)
            elif self._options.log_file is not None:
                self._open_log_file(self._options.log_file)
            for child in self._children:
                self._watch(child.log, self._splitters[child.pid], functools.partial(self._show, child))
                self._watch(child.ready, LineSplitter(), functools.partial(self._is_ready, child))
            reactor.call_later(READY_SECONDS, self._warn_of_unready)
            feed_watchdog(reactor, self._notifier)
            self._reap()  # those that ended before the signal handler was installed
            if self._alive:
                reactor.run()
            for child in self._children:
                self._drain(child)
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
            self._log_file = LogFile(path, self._reactor, lambda count: click.unstyle(self._error.report(count)))
        except FatalError as error:
            self._fail("failed", error=str(error))

    # --- the daemons' output

    def _watch(self, fd: int, splitter: LineSplitter, receive: Callable[[bytes], None]) -> None:
        """Call `receive` with each line that comes through a pipe."""

        def on_ready(_mask: int) -> None:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            for line in splitter.feed(data) if data else splitter.end():
                receive(line)
            if not data:
                self._reactor.unregister(fd)

        os.set_blocking(fd, False)
        self._reactor.register(fd, READ, on_ready)

    def _show(self, child: ChildProcess, line: bytes) -> None:
        """Pass a line on as it is: it names its daemon. Among JSON lines, one that is none becomes an event."""
        text = line.decode(errors="backslashreplace")
        if self._is_json and not (text.startswith("{") and text.endswith("}")):
            self._log.warning("unstructured output", source=child.name, text=text)
        else:
            self._error.write(f"{text}\n")
        if self._log_file is not None:
            self._log_file.write(f"{click.unstyle(text)}\n")

    def _drain(self, child: ChildProcess) -> None:
        """Show the last lines of a daemon that has ended, without waiting for processes that it may have left."""
        splitter = self._splitters[child.pid]
        try:
            while data := os.read(child.log, READ_BYTES):
                for line in splitter.feed(data):
                    self._show(child, line)
        except BlockingIOError:
            pass
        for line in splitter.end():
            self._show(child, line)

    def _is_ready(self, child: ChildProcess, line: bytes) -> None:
        self._bound |= msgspec.json.decode(line)
        self._unready.remove(child)
        if self._unready or self._stopping:
            return
        self._startup.end()
        ports = {"broadcast": "broadcast", "collate": "raw", "acknowledged": "acknowledged", "index": "index"}
        addresses = {name: self._bound[role][0] for name, role in ports.items()}
        self._output.write(banner(self._options.file, self._options.framing, addresses))
        if self._options.ready_fd is not None:
            error = write_ready(self._options.ready_fd, {"addresses": list(addresses.values())})
            if error is not None:
                self._log.warning("--ready-fd has no reader", fd=self._options.ready_fd, error=error)
        self._notifier.send("READY=1", until_taken=True)

    def _warn_of_unready(self) -> None:
        if self._unready and not self._stopping:
            self._log.warning(
                "daemons not ready",
                waiting_for=[child.name for child in self._unready],
                seconds=READY_SECONDS,
                advice="their log lines say what they wait for",
            )

    # --- the end

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
        if self._next_stop is not None:
            self._next_stop.cancel()
        self._to_stop = [child for child in self._to_stop if child in self._alive]
        if self._to_stop:
            child = self._to_stop.pop(0)
            os.kill(child.pid, signal.SIGTERM)  # not reaped yet: the pid is still its own
            self._reactor.call_later(STOP_SECONDS, functools.partial(self._kill, child))
            self._next_stop = self._reactor.call_later(ORDER_SECONDS, self._stop_next)

    def _kill(self, child: ChildProcess) -> None:
        if child in self._alive:
            os.kill(child.pid, signal.SIGKILL)
            self._reactor.call_later(KILL_SECONDS, functools.partial(self._give_up, child))

    def _kill_all(self) -> None:
        """A second signal: do not wait for commits and clients any longer."""
        if not self._killed:
            self._killed = True
            for child in self._alive:
                self._kill(child)

    def _give_up(self, child: ChildProcess) -> None:
        if child in self._alive:
            error = f"{child.name} (pid {child.pid}) was killed {KILL_SECONDS:.0f} s ago and still runs"
            self._fail("daemon does not end", error=error, advice="check its disk")
            self._alive.remove(child)
            self._after_end()

    def _reap(self) -> None:
        for child in tuple(self._alive):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            self._alive.remove(child)
            code = os.waitstatus_to_exitcode(status)
            if not self._stopping:
                # Also with exit code 0: the stream is not served as a whole any more.
                self._fail("daemon ended", error=f"{child.name} {_how(code)}", advice="stopping the others")
            elif code not in {0, -signal.SIGTERM}:  # the latter: stopped before it handled signals
                self._fail("daemon failed", error=f"{child.name} {_how(code)}")
            self._after_end()

    def _after_end(self) -> None:
        if not self._alive:
            self._reactor.stop()
        elif not any(child in self._alive and child not in self._to_stop for child in self._children):
            self._stop_next()

    def _fail(self, event: str, **facts: object) -> None:
        self._failed = True
        self._log.error(event, **facts)
        self._stop()


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
