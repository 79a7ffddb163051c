"""What a daemon answers at its --metrics address."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.support.sockets import read_to_end
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from tests.support.daemons import Daemon


def connect(server: Daemon | str) -> socket.socket:
    """A connection to an address, or to the first --metrics address of a daemon, which it names in its log."""
    address = server if isinstance(server, str) else str(server.wait_log("serving metrics")["addresses"][0])
    if address.startswith("unix:"):
        http = socket.socket(socket.AF_UNIX)
        http.settimeout(PATIENCE)
        http.connect(address.removeprefix("unix:"))
        return http
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def http_get(server: Daemon | str, target: str) -> str:
    """The answer to a GET, head and body."""
    with connect(server) as http:
        http.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        return read_to_end(http).decode()


def health(server: Daemon | str) -> tuple[int, str]:
    """Status and body of /healthz."""
    head, _, body = http_get(server, "/healthz").partition("\r\n\r\n")
    return int(head.split()[1]), body


def scrape(server: Daemon | str) -> dict[str, float]:
    """The values of /metrics by name, labels included."""
    lines = http_get(server, "/metrics").partition("\r\n\r\n")[2].splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}
