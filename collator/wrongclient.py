"""Clients of other ports, recognised by their first bytes on the raw port.

This module takes bytes and returns a verdict; it knows no sockets. It recognises three clients, whose first bytes a
producer is unlikely to send:

    a consumer          START [STOP] or `where`, with the blanks, signs and carriage return that tailsrv accepts
    an acked producer   its name line with a carriage return; a name without one may be a message
    an HTTP client      METHOD target HTTP/1.x, whatever follows

The first two are recognised only while nothing follows them. The patterns agree with tailsrv_formats/header.py and
acknowledgement.py, and are a little wider.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

FIRST_BYTES: Final = 1024
"""The number of first bytes that are examined."""

_HEADER: Final = re.compile(
    rb"[ \t\r]*(?:\+?[0-9]{1,19}|-[0-9]{1,19}|end|first|where)(?:[ \t]+(?:[0-9]{1,19}|now))?[ \t\r]*\n"
)
_NAME: Final = re.compile(rb"[A-Za-z0-9._:-]{0,128}\r\n")
_HTTP: Final = re.compile(rb"[A-Z]{1,16} [!-~]+ HTTP/1\.[0-9]\r\n")

_BEGINNING: Final = re.compile(
    rb"[ \t\r+A-Za-z0-9._:-]{0,129}"  # of a header or a name
    rb"|[A-Z]{1,16} (?:[!-~]+(?: (?:H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[0-9]\r?)?)?)?)?)?)?)?)?)?)?"  # of a request line
)


class WrongClient(msgspec.Struct, frozen=True):
    """A client of another port."""

    looks_like: str
    wanted: str
    """The port that it should use, in words."""
    at_once: bool = False
    """Whether the verdict holds whatever follows."""


HEADER: Final = WrongClient("the header of a client of tailsrv", "tailsrv's (4321 by default)")
NAME: Final = WrongClient("the name line of a producer", "the acknowledged port (--ack-port, 4323 by default)")
HTTP: Final = WrongClient("an HTTP request", "--metrics", at_once=True)


def recognise(first: bytes) -> WrongClient | None:
    """The client that sent `first`, the bytes of a connection so far; None for a producer."""
    if _HTTP.match(first):
        return HTTP
    if _HEADER.fullmatch(first):
        return HEADER
    if _NAME.fullmatch(first):
        return NAME
    return None


def may_become(first: bytes) -> bool:
    """Whether more bytes may turn `first` into a line that `recognise` knows."""
    return len(first) < FIRST_BYTES and _BEGINNING.fullmatch(first) is not None
