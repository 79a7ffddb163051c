"""Shortages of descriptors or of the kernel's memory: one policy for everything that a running daemon opens.

A shortage passes, and is not the fault of the activity that meets it. Such an activity is paused, which is logged once,
and retried until it succeeds: see `Retried`. Everything else goes on.

Peers can use up the descriptors. So the daemon holds a few in reserve for its own needs (`hold_descriptors`), and
releases them only inside `spare_descriptors`. Accepting peers never uses the reserve, except for health checks, which
matter most during a shortage.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tailsrv_runtime.logs import Log
    from tailsrv_runtime.reactor import Reactor, Timer

SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})
"""Errors that mean a shortage, and not a fault (trio calls them capacity errors)."""

RESERVED: Final = 8
"""Descriptors in reserve: the journal's compaction takes two, an index worker two, a health check one."""

RETRY_SECONDS: Final = 0.5
"""Time until a paused activity is retried."""

_held: list[int] = []
_wanted = 0


class ShortageError(OSError):
    """A shortage whose error number alone would mislead: inotify says ENOSPC when its watches are used up."""

    def __init__(self, error: OSError, what: str, to_do: str) -> None:
        """`error` is the kernel's; `what` names the shortage, and `to_do` is what an operator can do."""
        super().__init__(error.errno, what)
        self.filename = error.filename
        self.advice = to_do


def is_shortage(error: BaseException) -> bool:
    """Whether `error` is a shortage, which passes when another activity or process releases something."""
    if isinstance(error, (MemoryError, ShortageError)):
        return True
    return isinstance(error, OSError) and error.errno in SHORTAGES


def advice(error: OSError) -> str:
    """What an operator can do about a shortage."""
    if isinstance(error, ShortageError):
        return error.advice
    return {
        errno.EMFILE: "raise LimitNOFILE= (ulimit -n)",
        errno.ENFILE: "raise fs.file-max",
        errno.EAGAIN: "raise TasksMax= (ulimit -u)",
    }.get(error.errno or 0, "free some memory")


def hold_descriptors() -> None:
    """Hold `RESERVED` descriptors in reserve from now on, or as many as there are. A forked child calls it, too."""
    global _wanted  # noqa: PLW0603 - the table of descriptors is the process's, and so is what is held of it
    _wanted = RESERVED
    while len(_held) < RESERVED:
        try:
            _held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return


def is_drawn_on() -> bool:
    """Whether the reserve is not complete: descriptors are short."""
    return _wanted > len(_held)


@contextlib.contextmanager
def spare_descriptors() -> Iterator[None]:
    """Release the reserve for the body of the `with` statement, even while peers have all other descriptors.

    The body should be short: until it ends, an acceptor on another thread could use the descriptors.
    """
    while _held:
        os.close(_held.pop())
    try:
        yield
    finally:
        if _wanted:
            hold_descriptors()


class Retried:
    """An activity that a shortage pauses and that resumes by itself.

    >>> opening = Retried(reactor, log, "opening the file", self._open_file, file=path)
    >>> opening()  # now, or as soon as there are descriptors again
    """

    def __init__(
        self,
        reactor: Reactor,
        log: Log,
        activity: str,
        attempt: Callable[[], None],
        *,
        failed: Callable[[FatalError], None] | None = None,
        **facts: object,
    ) -> None:
        """`attempt()` does the work, or raises. It is called again after a shortage, so it must undo half-done work.

        `failed(error)` receives the `FatalError` of a later attempt, which has no caller; without it the daemon ends.
        The log events are `activity` with "paused" or "resumed", and have the fields `facts`.
        """
        self._reactor = reactor
        self._log = log
        self._activity = activity
        self._attempt = attempt
        self._failed = failed
        self._facts = facts
        self._timer: Timer | None = None
        self.paused: str | None = None
        """Why the activity is paused, for health checks; None if it is not."""

    def __call__(self) -> None:
        """Attempt it now, and after a shortage again later. Raises the other errors of `attempt`."""
        self.cancel()
        try:
            with spare_descriptors():
                self._attempt()
        except (OSError, MemoryError) as error:
            if not is_shortage(error):
                raise
            self._pause(error if isinstance(error, OSError) else OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
            return
        except FatalError:
            self.paused = None
            raise
        if self.paused is not None:
            self.paused = None
            self._log.info(f"{self._activity} resumed", **self._facts)

    def _pause(self, error: OSError) -> None:
        if self.paused is None:
            self._log.warning(f"{self._activity} paused", error=reason(error), advice=advice(error), **self._facts)
        self.paused = f"{self._activity} is paused: {reason(error)}"
        self._timer = self._reactor.call_later(RETRY_SECONDS, self._again)

    def _again(self) -> None:
        try:
            self()
        except FatalError as error:
            if self._failed is None:
                raise
            self._failed(error)

    def cancel(self) -> None:
        """Do not retry. `paused` stays as it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
