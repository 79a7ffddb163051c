"""The daemons of a stream as forks of one warm process.

All imports happen once, before the first fork: the daemons share those pages, and start in milliseconds. That is also
why nothing heavy is imported here: what this module loads, each daemon carries.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

import collator.cli
import collator.server
import indexer.cli
import indexer.server
import tailsrv.cli
import tailsrv.server
from tailsrv_formats.errors import reason
from tailsrv_runtime.shortage import advice

if TYPE_CHECKING:
    from collections.abc import Callable

    from compose.up.options import Options

PR_SET_PDEATHSIG: Final = 1  # prctl(2)

MEANT_FOR_THE_LAUNCHER: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")

FURTHER_ADDRESSES: Final = ("TAILSRV_PORT", "TAILSRV_COLLATE_PORT", "TAILSRV_COLLATE_ACK_PORT", "TAILSRV_INDEX_PORT")
"""Ports come on top of what is passed as --listen; they would be open beyond --host."""


class Part(msgspec.Struct):
    """One of the daemons: what it is called, how it is started, and once it runs, its pipes."""

    name: str
    main: Callable[[], None]
    arguments: tuple[str, ...]
    pid: int = 0
    ready: int = -1
    """Its readiness line comes here."""
    log: int = -1
    """Its standard error comes here."""


def parts_of(options: Options) -> list[Part]:
    """The daemons of a stream, in the order in which they start; they stop in the same one, the writer first."""
    form = options.log_format
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    allowed = (word for network in options.allow for word in ("--allow", network))
    common = ("--log-level", options.log_level, "--log-format", form, *allowed)
    framing = ("--framing", options.framing)
    lanes = ("--listen", options.address(1), "--ack-listen", options.address(2), "--sync", options.sync)
    return [
        Part("collate", collator.cli.main, (options.file, *lanes, *framing, *common)),
        Part("index", indexer.cli.main, (options.file, "--listen", options.address(3), *framing, *common)),
        Part("tailsrv", tailsrv.cli.main, (options.file, "--listen", options.address(0), *common)),
    ]


def start_all(parts: list[Part], ready_fd: int | None) -> tuple[list[Part], str | None]:
    """Fork the daemons. Returns those that run, and why not all of them do.

    `ready_fd` is the launcher's own: a daemon that kept it open would keep its reader waiting.
    """
    started: list[Part] = []
    private = set() if ready_fd is None else {ready_fd}
    for part in parts:
        try:
            _start(part, private)
        except OSError as error:
            return started, f"cannot start {part.name}: {reason(error)}; {advice(error)}"
        private |= {part.ready, part.log}
        started.append(part)
    return started, None


def _start(part: Part, private: set[int]) -> None:
    """Fork a daemon, in a process group of its own: Ctrl-C is the launcher's to hand on, in its order."""
    pipes: list[int] = []
    try:
        pipes += os.pipe()
        pipes += os.pipe()
        launcher = os.getpid()
        part.pid = os.fork()
    except OSError:
        for fd in pipes:
            os.close(fd)
        raise
    ready_read, ready_write, log_read, log_write = pipes
    if part.pid == 0:
        for fd in (*private, ready_read, log_read):
            os.close(fd)
        _become(part, ready_write, log_write, launcher)
    os.close(ready_write)
    os.close(log_write)
    part.ready, part.log = ready_read, log_read


def _become(part: Part, ready: int, log: int, launcher: int) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            os._exit(code)  # it died before it could be watched
        os.dup2(log, 2)
        os.close(log)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        for variable in (*MEANT_FOR_THE_LAUNCHER, *FURTHER_ADDRESSES):
            os.environ.pop(variable, None)
        sys.argv = [part.name, *part.arguments, "--ready-fd", str(ready)]
        part.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException as error:  # noqa: BLE001 - said; nobody above could
        with contextlib.suppress(OSError):
            os.write(2, f"{part.name} cannot start: {error!r}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)  # what the launcher does at its exit is not ours to do
