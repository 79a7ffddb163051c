"""Listening sockets for addresses.

An empty host means every interface, IPv4 and IPv6, by one dual-stack socket where the machine has IPv6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any, Final

from tailsrv_formats.addresses import Address, format_address
from tailsrv_formats.errors import UsageError, reason
from tailsrv_runtime.errors import FatalError
from tailsrv_runtime.unix_sockets import bind_unix

BACKLOG: Final = 4096
"""Connections that the kernel queues while the daemon is busy; net.core.somaxconn is the maximum."""

FIRST_INHERITED_FD: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
DESCRIPTOR_DIGITS: Final = 9
FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


class Listener:
    """A non-blocking listening socket, with its path if it is a Unix socket that this process has bound."""

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        self.socket = sock
        self.address = format_address(sock.getsockname())
        self._path = path
        self._bound = None if path is None else _identity(path)
        self._pid = os.getpid()

    def close(self) -> None:
        """Stop listening, and remove the path of a Unix socket if it belongs to this listener.

        It does not if the socket was handed over by systemd, in a forked process, or if a successor has bound the path
        since.
        """
        self.socket.close()
        path, self._path = self._path, None
        if path is not None and self._pid == os.getpid() and _identity(path) == self._bound:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    """The device and inode of `path`; None if it cannot be read."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


NOT_HERE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""Errors of bind(2) for an address or a family that this machine does not have."""

PORT_ATTEMPTS: Final = 16
"""Ports of the kernel's choice that are tried until one is free on all addresses of a name."""


def bind(address: Address, *, reuse_port: bool = False) -> list[Listener]:
    """Listeners for `address`: one, or one for each address that HOST resolves to and that this machine has.

    With port 0 and several addresses all get the same port.
    `reuse_port` lets this process bind further sockets to the same port (SO_REUSEPORT). The first one is exclusive:
    the port of another daemon is never shared. Raises `FatalError` if the kernel refuses.
    """
    if address.path is not None:
        return [Listener(bind_unix(address.path, BACKLOG), address.path)]
    targets = _targets(address)
    attempts = PORT_ATTEMPTS if not address.port and len(targets) > 1 else 1
    while True:
        attempts -= 1
        try:
            sockets = _bind_each(targets, address.port, only_v6=bool(address.host), reuse_port=reuse_port)
        except OSError as error:
            if not attempts or error.errno != errno.EADDRINUSE:
                raise FatalError(f"cannot listen on {address}: {reason(error)}; {_advice(error)}") from None
        else:
            return [Listener(sock) for sock in sockets]


def _bind_each(
    targets: list[tuple[int, tuple[Any, ...]]], port: int, *, only_v6: bool, reuse_port: bool
) -> list[socket.socket]:
    """A socket for each target that this machine has, all on one port; or `OSError`, and no socket."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, (host, _, *rest) in targets:
        try:
            sock = _bind_tcp(family, (host, port, *rest), only_v6=only_v6, reuse_port=reuse_port)
        except OSError as error:
            if error.errno in NOT_HERE:
                missing = error
                continue
            for each in sockets:
                each.close()
            raise
        sockets.append(sock)
        port = sock.getsockname()[1]
    if not sockets and missing is not None:
        raise missing
    return sockets


def _targets(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    """The families and socket addresses of a TCP address."""
    if not address.host:
        return [_any_interface(address.port)]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError) as error:
        raise FatalError(
            f"cannot listen on {address}: unknown host {address.host!r} ({error}); check the name"
        ) from None
    return list(dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found))


def _bind_tcp(family: int, sockaddr: tuple[Any, ...], *, only_v6: bool, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
        # After bind: with the option set before, bind would share the port of another daemon with workers.
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_all(addresses: tuple[Address, ...], *, reuse_port: bool = False) -> list[Listener]:
    """Listeners for all of `addresses`. If one cannot be bound, the others are closed, and `FatalError` is raised."""
    listeners: list[Listener] = []
    try:
        for address in addresses:
            listeners += bind(address, reuse_port=reuse_port)
    except FatalError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _any_interface(port: int) -> tuple[int, tuple[Any, ...]]:
    """The wildcard of IPv6, which also accepts IPv4 peers; without IPv6, that of IPv4."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return socket.AF_INET, ("0.0.0.0", port)  # noqa: S104 - ":PORT" says so
    return socket.AF_INET6, ("::", port)


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has this port; stop it, or choose another port (0: any free port)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has this address; choose one that `ip address` lists"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "ports below 1024 need CAP_NET_BIND_SERVICE, or a socket from systemd"
    return "choose another address"


def inherited_listeners() -> dict[str, list[Listener]]:
    """The listening sockets that systemd handed over, by their name (FileDescriptorName=), after sd_listen_fds(3).

    The environment variables are removed, so that no child process uses the sockets as well.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit() and len(count) <= DESCRIPTOR_DIGITS):
        return {}
    listeners: dict[str, list[Listener]] = {}
    for position, fd in enumerate(range(FIRST_INHERITED_FD, FIRST_INHERITED_FD + int(count))):
        try:
            listener = socket.socket(fileno=fd)
            listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            raise FatalError(
                f"descriptor {fd} of LISTEN_FDS is not a socket; use ListenStream= in the socket unit"
            ) from None
        if not listens or listener.type != socket.SOCK_STREAM or listener.family not in FAMILIES:
            kind = f"{_name(listener.family)} {_name(listener.type)}"
            listener.close()
            raise FatalError(
                f"descriptor {fd} of LISTEN_FDS ({kind}) does not accept streams over TCP or a Unix socket;"
                " use ListenStream= in the socket unit"
            )
        listener.setblocking(False)
        os.set_inheritable(fd, False)
        name = names[position] if position < len(names) else ""
        listeners.setdefault(name, []).append(Listener(listener))
    return listeners


def _name(kind: int) -> str:
    """Its name, such as AF_VSOCK, or its number if Python has none."""
    return getattr(kind, "name", str(kind))


def listeners_for(addresses: tuple[Address, ...], *, reuse_port: bool = False) -> list[Listener]:
    """Listeners for `addresses`, or the sockets of systemd. Raises `UsageError` without either, and `FatalError`."""
    if addresses:
        return bind_all(addresses, reuse_port=reuse_port)
    listeners = [listener for named in inherited_listeners().values() for listener in named]
    if not listeners:
        raise UsageError("nowhere to listen; give --port or --listen")
    return listeners
