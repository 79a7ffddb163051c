"""What a client can't work through. What a single connection suffers is no error: the clients connect again."""

from __future__ import annotations


class ClientError(Exception):
    """The root of the errors of the clients, but for `StreamDiverged`."""


class WrongPortError(ClientError):
    """What answers at an address is not the server that the client is for; says what it looks like, and what to try."""


class UnknownHostError(ClientError):
    """None of the addresses has a host that can be resolved, and none ever had."""


class GaveUpError(ClientError):
    """Nothing worked for as long as the caller allowed (`Waits.outage`, ``--timeout``)."""
