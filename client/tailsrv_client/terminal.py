"""Terminals, pipes and signals, for both commands: they end as other Unix tools do."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tailsrv_client.errors import GaveUpError
from tailsrv_client.standard_error import end_status, write_message
from tailsrv_client.threads import start
from tailsrv_formats.errors import TailsrvError, UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.command_line import Command

REPEAT_SECONDS: Final = 10.0
WAKE_SECONDS: Final = (0.01, 0.1, 0.5)
"""When the main thread is woken after a signal: once is enough, unless it begins to wait at that very moment."""

GRACE_SECONDS: Final = 1.0


class Signalled(BaseException):
    """SIGINT or SIGTERM. Not KeyboardInterrupt, which is for SIGINT alone."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum: signal.Signals = signal.Signals(signum)


def run_command(command: Command, run: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Run `command` as the whole process: `run` gets its values.

    Exit codes: 0 done, 1 what can't be worked through, 2 a wrong command line, 3 nothing worked for as long as
    --timeout allows; each but the first after one line.
    SIGINT, SIGTERM and SIGPIPE (the reader of its output has gone) end the process by that signal, without a message.
    """
    name, arguments = command.name, sys.argv[1:]
    keep_standard_descriptors()
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(signum, _raise_signalled)
    _wake_main_thread()
    try:
        if instruction := os.environ.get(command.completion_variable):
            from tailsrv_client.completion import complete  # noqa: PLC0415 - needed by shells alone

            write_all(1, complete(command, instruction, os.environ).encode())
        else:
            run(command.parse(arguments))
    except UsageError as error:
        complain(name, f"{command.blamed(str(error), arguments)} (see {name} --help)", 2)
    except GaveUpError as error:
        complain(name, str(error), 3)
    except (TailsrvError, ValueError) as error:
        complain(name, str(error), 1)
    except BrokenPipeError:
        die_of(signal.SIGPIPE)
    except OSError as error:
        at = f"{error.filename}: " if isinstance(error.filename, str) else ""
        complain(name, f"{at}{reason(error)}", 1)
    except Signalled as signalled:
        die_of(signalled.signum)
    sys.exit(0)


def keep_standard_descriptors() -> None:
    """Open what of 0, 1 and 2 is closed: a socket with such a number would get what is meant for standard output.

    They are opened the wrong way round, as glibc does it for setuid programs: a read or write fails as before, with
    EBADF. (A closed output must not look like one that has taken everything.)
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is the one that is closed. Where there is no /dev, a directory takes no bytes.
            try:
                os.open(os.devnull, flags)
            except OSError:
                os.open("/", os.O_RDONLY)


def complain(name: str, message: str, code: int) -> NoReturn:
    """Write the message in one line, and exit."""
    end_status()
    write_message(name, message)
    sys.exit(code)


def die_of(signum: signal.Signals) -> NoReturn:
    """End as a program that does not handle the signal: shells and supervisors look at that."""
    end_status()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)  # not reached, unless the signal is blocked


def log_to_standard_error(name: str) -> None:
    """Write the library's warnings as lines of the command; the same line at most every `REPEAT_SECONDS`."""
    handler = logging.Handler()
    last_text, last_time = "", 0.0

    def emit(record: logging.LogRecord) -> None:
        nonlocal last_text, last_time
        text, now = record.getMessage(), time.monotonic()
        if text != last_text or now > last_time + REPEAT_SECONDS:
            last_text, last_time = text, now
            write_message(name, text)

    handler.emit = emit  # type: ignore[method-assign]  # a class for one function would say less
    logger = logging.getLogger("tailsrv_client")
    logger.addHandler(handler)
    logger.propagate = False


class SoftStop:
    """Takes SIGINT and SIGTERM from now on: they call `stop`, so that what is in hand is finished first.

    `finish` then ends as the signal would have. It waits at most a second for an output
    that is not read or a server that does not answer.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._signum: signal.Signals | None = None
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, self._on_signal)

    @property
    def signalled(self) -> bool:
        """Whether there was a signal."""
        return self._signum is not None

    def finish(self) -> None:
        """Die, if there was a signal."""
        if self._signum is not None:
            die_of(self._signum)

    def _on_signal(self, signum: int, _: object) -> None:
        self._signum = signal.Signals(signum)
        signal.signal(signal.SIGALRM, lambda *_: die_of(signal.Signals(signum)))
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        # In a thread of its own: what it needs may be locked by what this signal has interrupted.
        start(self._stop, "stop")


def watch_output(fd: int, gone: Callable[[], object]) -> None:
    """Call `gone`, in a thread, once the reader of `fd` has closed its end. Costs nothing until then."""

    def wait() -> None:
        poller = select.poll()
        poller.register(fd, 0)  # errors and hang-ups are reported without being asked for
        poller.poll()
        gone()

    start(wait, "output")


def write_all(fd: int, pieces: bytes | memoryview) -> None:
    """Write all of it. Raises `OSError`; waits also if another process has made `fd` non-blocking."""
    view = memoryview(pieces)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def _wake_main_thread() -> None:
    """Have the main thread look at signals that came right before it began to wait, or to another thread.

    Python only notes a signal then, and the main thread would look at the note after its wait.
    """
    main = threading.get_ident()
    try:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return  # --help needs no descriptor, and what needs one says so

    def wake() -> None:
        while True:
            noted = os.read(read_end, 64)
            for pause in WAKE_SECONDS if signal.SIGINT in noted or signal.SIGTERM in noted else ():
                time.sleep(pause)
                signal.pthread_kill(main, signal.SIGURG)

    try:
        start(wake, "signals")
    except RuntimeError:  # no thread: as above
        os.close(read_end)
        os.close(write_end)
        return
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGURG, lambda *_: None)
    sys.unraisablehook = _die_if_signalled
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)


def _raise_signalled(signum: int, _: object) -> None:
    raise Signalled(signum)


def _die_if_signalled(unraisable: sys.UnraisableHookArgs) -> None:
    """Die of a signal that Python would lose: it was raised in a destructor or a weak reference's callback."""
    if isinstance(unraisable.exc_value, Signalled):
        die_of(unraisable.exc_value.signum)
    sys.__unraisablehook__(unraisable)
