"""Resolves host names in a thread that no caller has to join, because getaddrinfo may hang for a minute."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from tailsrv_client.threads import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_formats.addresses import Address


class Lookup:
    """The resolution of one host. `done` is also signalled by a call of `notify`, in the thread that looked it up."""

    def __init__(self, address: Address, notify: Callable[[], object]) -> None:
        self._host, self._port = address.host or "localhost", address.port
        self._found: list[tuple[int, Any]] = []
        self._error: OSError | None = None
        self.done: bool = False
        try:
            self._found = self._resolve(socket.AI_NUMERICHOST)
        except OSError:
            _pending.join(self, notify)
        else:
            self.done = True

    def targets(self) -> list[tuple[int, Any]]:
        """What to connect to, in the order of preference: family and socket address. Raises `OSError`."""
        if self._error is not None:
            raise self._error
        return list(self._found)

    def run(self) -> None:
        """Ask the resolver."""
        try:
            self._found = self._resolve(0)
        except OSError as error:
            self._error = error
        except (UnicodeError, ValueError):  # a label of more than 63 characters, or a NUL: no name of any host
            self._error = socket.gaierror(socket.EAI_NONAME, "not a valid host name")

    def take_over(self, other: Lookup) -> None:
        """Have the result of another lookup of the same host."""
        self._found, self._error, self.done = other._found, other._error, True

    def fail(self, error: OSError) -> None:
        """There is no result."""
        self._error, self.done = error, True

    @property
    def key(self) -> tuple[str, int]:
        """What is looked up."""
        return self._host, self._port

    def _resolve(self, flags: int) -> list[tuple[int, Any]]:
        # As bytes: of a str Python makes IDNA, for which it imports modules, in this thread. A fork meanwhile, or the
        # interpreter's end, would find them half imported.
        host = self._host.encode() if self._host.isascii() else self._host
        try:
            found = socket.getaddrinfo(host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except (UnicodeError, ValueError):
            if flags:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
            raise
        return [(family, target) for family, _, _, _, target in found]


class _Pending:
    """Lookups under way, one thread for each name: a resolver that hangs is not asked again by every retry."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[tuple[str, int], list[tuple[Lookup, Callable[[], object]]]] = {}

    def forget(self) -> None:
        """In a forked child: the threads that look up are the parent's."""
        self._guard = threading.Lock()
        self._waiting.clear()

    def join(self, lookup: Lookup, notify: Callable[[], object]) -> None:
        """Resolve it, or wait for a resolution of the same name that is under way."""
        with self._guard:
            waiting = self._waiting.setdefault(lookup.key, [])
            waiting.append((lookup, notify))
            if len(waiting) > 1:
                return
        asked = lookup
        try:
            start(lambda: self._run(asked), "tailsrv-lookup")
        except RuntimeError:  # no room for another thread: as any shortage, it passes
            self._finish(lookup.key, lambda one: one.fail(OSError(errno.EAGAIN, "cannot start a thread")))

    def _run(self, lookup: Lookup) -> None:
        lookup.run()
        self._finish(lookup.key, lambda one: one.take_over(lookup))

    def _finish(self, key: tuple[str, int], finish: Callable[[Lookup], None]) -> None:
        with self._guard:
            waiting = self._waiting.pop(key, [])
        for lookup, notify in waiting:
            finish(lookup)
            with contextlib.suppress(RuntimeError):  # an event loop that is closed waits for nothing
                notify()


_pending = _Pending()
os.register_at_fork(after_in_child=_pending.forget)
