"""Addresses as users write them, and the listening sockets that they stand for.

    HOST:PORT   [V6]:PORT   :PORT   unix:PATH

An empty host means every interface, IPv4 and IPv6, by one dual-stack socket where the machine has IPv6. What
`format_address` prints can be given to an option again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any, Final

import msgspec

from tailsrv.kit.errors import FatalError, UsageError, reason
from tailsrv.kit.unix_sockets import bind_unix

BACKLOG: Final = 4096
"""Connections that the kernel queues while we are busy; it caps this at net.core.somaxconn."""

FIRST_INHERITED_FD: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
DESCRIPTOR_DIGITS: Final = 9
FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


class Address(msgspec.Struct, frozen=True):
    """Where to listen or to connect: a TCP host and port (0 to 65535), or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int | None = None) -> Address:
    """What `text` names; with a `default_port` a host alone will do. Raises `UsageError`, naming the forms."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    if default_port is not None and (host := _host_alone(text)):
        return Address(host=host, port=default_port)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        forms = "HOST:PORT, [V6]:PORT, :PORT" if default_port is None else "HOST, HOST:PORT, [V6]:PORT, :PORT"
        raise UsageError(f"{text!r} is no address; write {forms} or unix:PATH")
    return Address(host=host, port=int(port))


def _host_alone(text: str) -> str:
    """The host in ``HOST``, ``[V6]`` and a bare IPv6 address; empty for anything else.

    Digits alone are a port that was typed without its colon: as a host they would mean an IPv4 address.
    """
    bracketed = text.startswith("[") and text.endswith("]")
    bare = text[1:-1] if bracketed else text
    if bracketed or ":" in bare:
        try:
            socket.inet_pton(socket.AF_INET6, bare.partition("%")[0])
        except (OSError, ValueError):
            return ""
        return bare
    return "" if bare.isdigit() or not bare.isprintable() or " " in bare else bare


def format_address(sockaddr: object) -> str:
    """A socket address as `getsockname` or `accept` return it, written as an option takes it."""
    if isinstance(sockaddr, tuple):
        return str(Address(host=unmapped(sockaddr[0]), port=sockaddr[1]))
    path = os.fsdecode(sockaddr) if isinstance(sockaddr, (str, bytes)) else ""
    return f"unix:{path}"


def unmapped(host: str) -> str:
    """The IPv4 address that a dual-stack socket shows as ``::ffff:a.b.c.d``; others as they are."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


class Listener:
    """A non-blocking listening socket, and the path that goes with it when it is a Unix socket of our own making."""

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        self.socket = sock
        self.address = format_address(sock.getsockname())
        self._path = path
        self._bound = None if path is None else _identity(path)
        self._pid = os.getpid()

    def close(self) -> None:
        """Stop listening; leave no path behind, unless it is another's.

        It is another's when the socket was handed over, in a forked process, and when a successor has bound the path
        meanwhile.
        """
        self.socket.close()
        path, self._path = self._path, None
        if path is not None and self._pid == os.getpid() and _identity(path) == self._bound:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    """Which file a path names; None where it names none that can be seen."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


NOT_HERE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""What the kernel says of an address that this machine does not have."""

PORT_ATTEMPTS: Final = 16
"""How many ports of the kernel's choice are tried on all addresses of a name."""


def bind(address: Address, *, reuse_port: bool = False) -> list[Listener]:
    """Listeners for `address`: one, or one for each address that HOST resolves to and that this machine has.

    With port 0 and several addresses all get the same port.
    `reuse_port` lets this process bind further sockets to the same port (SO_REUSEPORT). The first one is exclusive all
    the same: another daemon's port is never joined. Raises `FatalError` where the kernel refuses.
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
    """A socket for each target that this machine has, all on one port. Raises `OSError`, and has bound none then."""
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
    """The families and socket addresses that a TCP address stands for."""
    if not address.host:
        return [_any_interface(address.port)]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError) as error:
        raise FatalError(f"cannot listen on {address}: {address.host!r} is not known here ({error})") from None
    return list(dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found))


def _bind_tcp(family: int, sockaddr: tuple[Any, ...], *, only_v6: bool, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
        # Only now: with this option from the beginning, the port of another daemon with workers could be shared.
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_all(addresses: tuple[Address, ...], *, reuse_port: bool = False) -> list[Listener]:
    """Listeners for all of `addresses`, or none: when one can't be had, the others are given back."""
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
    """IPv6's wildcard takes IPv4 peers too; machines without IPv6 have the other one."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return socket.AF_INET, ("0.0.0.0", port)  # noqa: S104 - ":PORT" says so
    return socket.AF_INET6, ("::", port)


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has this port: stop it, or choose another port (0: the kernel chooses)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has this address; `ip address` lists them"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "ports below 1024 need CAP_NET_BIND_SERVICE, or a socket from systemd"
    return "choose another address"


def inherited_listeners() -> dict[str, list[Listener]]:
    """The listening sockets that systemd handed over, by their name (FileDescriptorName=), after sd_listen_fds(3).

    The environment variables are removed, so that no child takes them for its own.
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
                f"descriptor {fd} of LISTEN_FDS is no socket; use ListenStream= in the socket unit"
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
    """AF_VSOCK, or the number of what Python has no name for."""
    return getattr(kind, "name", str(kind))


def listeners_for(addresses: tuple[Address, ...], *, reuse_port: bool = False) -> list[Listener]:
    """Where the options say, or else systemd. Raises `UsageError` when neither does, or `FatalError`."""
    if addresses:
        return bind_all(addresses, reuse_port=reuse_port)
    listeners = [listener for named in inherited_listeners().values() for listener in named]
    if not listeners:
        raise UsageError("nowhere to listen; give --port or --listen")
    return listeners
