"""Addresses as users write them.

    HOST:PORT   [V6]:PORT   :PORT   unix:PATH

What `format_address` returns can be given to an option again.
"""

from __future__ import annotations

import os

import msgspec

from tailsrv_formats.errors import UsageError


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
        raise UsageError(f"invalid address {text!r}; write {forms} or unix:PATH")
    return Address(host=host, port=int(port))


def _host_alone(text: str) -> str:
    """The host in ``HOST``, ``[V6]`` and a bare IPv6 address; empty for anything else.

    Digits alone are a port that was typed without its colon: as a host they would mean an IPv4 address.
    """
    bracketed = text.startswith("[") and text.endswith("]")
    bare = text[1:-1] if bracketed else text
    if bracketed or ":" in bare:
        from ipaddress import IPv6Address  # noqa: PLC0415 - needed for few addresses, and slow to import

        try:
            IPv6Address(bare)
        except ValueError:
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
