"""The daemons of a stream as forks of one warm process.

All imports happen once, before the first fork: the daemons share those pages, and start in milliseconds. For the same
reason nothing heavy is imported here: every daemon would carry it.
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
from compose.up.options import COLLATE, DAEMONS, INDEX, TAILSRV
from tailsrv_formats.errors import reason
from tailsrv_runtime.logs import is_console
from tailsrv_runtime.shortage import advice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from compose.up.options import Options

PR_SET_PDEATHSIG: Final = 1  # prctl(2)

MEANT_FOR_THE_LAUNCHER: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")

FURTHER_ADDRESSES: Final = ("TAILSRV_PORT", "TAILSRV_COLLATE_PORT", "TAILSRV_COLLATE_ACK_PORT", "TAILSRV_INDEX_PORT")
"""A daemon would listen on these ports in addition to its --listen, and on all interfaces, whatever --host is."""


class ChildProcess(msgspec.Struct):
    """A daemon: its name, its command line and, once it runs, its process and its pipes."""

    name: str
    main: Callable[[], None]
    arguments: tuple[str, ...]
    pid: int = 0
    ready: int = -1
    """The pipe of its readiness line."""
    log: int = -1
    """The pipe of its standard error."""


def children_of(options: Options) -> list[ChildProcess]:
    """The daemons of a stream, in the order of `DAEMONS`."""
    form = "console" if is_console(options.log_format) else "json"
    allowed = (word for network in options.allow for word in ("--allow", network))
    common = ("--log-level", options.log_level, "--log-format", form, *allowed)
    raw, acknowledged, index, broadcast = (str(options.address(position)) for position in (1, 2, 3, 0))
    own: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
        COLLATE: (
            collator.cli.main,
            (*("--listen", raw, "--ack-listen", acknowledged), *("--sync", options.sync, "--framing", options.framing)),
        ),
        INDEX: (indexer.cli.main, ("--listen", index, "--framing", options.framing)),
        TAILSRV: (tailsrv.cli.main, ("--listen", broadcast)),
    }
    children = []
    for name in DAEMONS:
        main, arguments = own[name]
        endpoint = options.metrics_address(name)
        metrics = () if endpoint is None else ("--metrics", str(endpoint))
        passed = options.passed.get(name, ())
        children.append(ChildProcess(name, main, (*arguments, *metrics, *common, *passed, "--", options.file)))
    return children


def start_all(children: list[ChildProcess], ready_fd: int | None) -> tuple[list[ChildProcess], str | None]:
    """Fork the daemons. Returns those that run, and the error if one of them could not be started.

    `ready_fd` is the launcher's own: a daemon that inherited it would keep its reader waiting.
    """
    started: list[ChildProcess] = []
    private = set() if ready_fd is None else {ready_fd}
    for child in children:
        try:
            _start(child, private)
        except OSError as error:
            return started, f"cannot start {child.name}: {reason(error)}; {advice(error)}"
        private |= {child.ready, child.log}
        started.append(child)
    return started, None


def _start(child: ChildProcess, private: set[int]) -> None:
    """Fork a daemon, in a process group of its own, so that Ctrl-C reaches the launcher alone, which stops in order."""
    pipes: list[int] = []
    try:
        pipes += os.pipe()
        pipes += os.pipe()
        launcher = os.getpid()
        child.pid = os.fork()
    except OSError:
        for fd in pipes:
            os.close(fd)
        raise
    ready_read, ready_write, log_read, log_write = pipes
    if child.pid == 0:
        _become(child, (*private, ready_read, log_read), ready_write, log_write, launcher)
    os.close(ready_write)
    os.close(log_write)
    child.ready, child.log = ready_read, log_read


def _become(child: ChildProcess, private: Iterable[int], ready: int, log: int, launcher: int) -> NoReturn:
    """In the forked process: become the daemon. Whatever happens here, the launcher's code must not go on."""
    code = 1
    try:
        for fd in private:
            os.close(fd)
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            os._exit(code)  # the launcher died before the call above, and no signal comes for that
        os.dup2(log, 2)
        os.close(log)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        for variable in (*MEANT_FOR_THE_LAUNCHER, *FURTHER_ADDRESSES):
            os.environ.pop(variable, None)
        sys.argv = [child.name, "--ready-fd", str(ready), *child.arguments]
        child.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException as error:  # noqa: BLE001 - reported here: the frames above are the launcher's
        with contextlib.suppress(OSError):
            os.write(2, f"{child.name} cannot start: {error!r}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)  # without the launcher's exit handlers
