"""A worker as its supervisor sees it: a child process and the channel to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from tailsrv.worker import SIGNALS, run_worker
from tailsrv.worker_messages import MESSAGE_BYTES, Event, WorkerReport, decode

if TYPE_CHECKING:
    from tailsrv.options import Options
    from tailsrv.worker_messages import Command
    from tailsrv_runtime.listeners import Listener
    from tailsrv_runtime.logs import Log


class WorkerProcess:
    """A child process that serves on `listeners`. It has to be reaped."""

    def __init__(self, listeners: list[Listener], options: Options, log: Log, *, first: bool) -> None:
        """Fork. Raises `OSError` for a shortage; there is no process then. `first`: see `run_worker`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the worker unblocks them when it has its handlers
            try:
                self.pid = os.fork()
                if not self.pid:
                    run_worker(theirs, [listener.socket for listener in listeners], options, log, first=first)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self.started = time.monotonic()
        """In seconds of the monotonic clock."""
        self.is_serving = False
        """Whether the worker has reported that it is ready."""
        self.owes_metrics = False
        """Whether it was asked for its metrics and has not answered."""
        self.last_metrics = WorkerReport(Event.METRICS)
        """Its last answer, or an empty one."""

    def fileno(self) -> int:
        """The descriptor of the channel."""
        return self._channel.fileno()

    def send(self, command: Command) -> None:
        """Send a command without waiting. It is lost if the worker has ended, or has read nothing for long."""
        with contextlib.suppress(OSError):
            self._channel.send(command.value, socket.MSG_DONTWAIT)

    def receive(self) -> WorkerReport | None:
        """The next report; None if there is none at the moment. Raises `EOFError` when the worker has ended."""
        try:
            packet = self._channel.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            packet = b""
        if not packet:
            raise EOFError
        return decode(packet)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> str:
        """Close the channel, wait until the process has ended, and return how: a signal's name, or the exit code.

        The channel must not be registered with the reactor any more.
        """
        self._channel.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
