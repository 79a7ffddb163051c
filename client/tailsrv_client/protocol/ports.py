"""The four ports that a client may be connected to by mistake: their numbers, and how each answers. Pure.

The ports differ by one digit, and netcat is a valid client of each, so a wrong one takes what it is sent for
something else. A client therefore looks at the first thing that a server does before it trusts it:

    broadcast      closes at once, without a byte, for the header "0 0"     says nothing on its own
    raw            says nothing; resets a client that is not for it
    acknowledged   "ACKED AT" for a name line; "error: …"
    index          a number, a JSON object or "error: …" for each line
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tailsrv_client.errors import WrongPortError

if TYPE_CHECKING:
    from tailsrv_formats.addresses import Address


class Port(NamedTuple):
    """A kind of port, and its default number."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} port ({self.number})"


BROADCAST: Final = Port("broadcast", 4321)
RAW: Final = Port("raw", 4322)
ACKNOWLEDGED: Final = Port("acknowledged", 4323)
INDEX: Final = Port("index", 4324)

GREETING_SECONDS: Final = 4.0
"""How long a server may take to show that it is the right one; a command ends within 5 s, its start included."""

ENDED_SECONDS: Final = 3.0
"""How long connections that end before that are tried again: a server that is being restarted ends them, too."""

PROBE: Final = b"0 0\n"
"""A header that a broadcaster answers by closing, an indexer and an acknowledged port by an error, and that the raw
port of a collator knows for a mistake."""

SHOWN_BYTES: Final = 60

_WHAT_ANSWERS: Final = (
    (re.compile(rb"error: .*(?:write N, -N|one thing at a time|beyond the stream|not indexed)"), f"the {INDEX}"),
    (re.compile(rb"error: .*\bname\b"), f"the {ACKNOWLEDGED}"),
    (re.compile(rb"error: "), f"the {ACKNOWLEDGED} or the {INDEX}"),
    (re.compile(rb"\d{1,19} \d{1,19}\r?\n"), f"the {ACKNOWLEDGED}"),
    (re.compile(rb"\d{1,19}\r?\n|\{"), f"the {INDEX}"),
    (re.compile(rb"HTTP/"), "an HTTP server"),
    (re.compile(rb"SSH-"), "an SSH server"),
    (re.compile(rb"[\x15\x16]\x03"), "a TLS server"),
    (re.compile(rb"220[ -]"), "a mail or FTP server"),
)


_ACKED_AT: Final = re.compile(rb"\d{1,19} \d{1,19}\r?\n?")
_ACKED_AT_BEGINS: Final = re.compile(rb"\d{1,19}(?: (?:\d{1,19}\r?)?)?")
_ERROR: Final = b"error: "


def greets(data: bytes) -> bool:
    """Whether these first bytes of a server, a line or its beginning, may be an acknowledged port's."""
    if data.startswith(_ERROR):
        return not _WHAT_ANSWERS[0][0].match(data)
    beginning = not data or _ERROR.startswith(data) or _ACKED_AT_BEGINS.fullmatch(data)
    return bool(beginning or _ACKED_AT.fullmatch(data))


def wrong_port(address: Address, expected: Port, what: str) -> WrongPortError:
    """`what` the server at `address` did, as the error that says which port was wanted."""
    return WrongPortError(
        f"{address} is not the {expected.name} port: {what}; the {expected.name} port is {expected.number} unless the"
        " operator chose another: check the address"
    )


def answered(data: bytes) -> str:
    """How to call bytes that the wanted server would never have sent first."""
    line = data[:SHOWN_BYTES].split(b"\n")[0].rstrip(b"\r").decode("latin-1")
    shown = "".join(each if each.isascii() and each.isprintable() else "." for each in line)
    for pattern, server in _WHAT_ANSWERS:
        if pattern.match(data):
            return f'it answers "{shown}", as {server} does'
    return f'it answers "{shown}", perhaps the bytes of a stream from the {BROADCAST}'


def silent(expected: Port) -> str:
    """How to call a server that keeps a connection open and says nothing."""
    likely = f"as the {RAW} does" if expected is not BROADCAST else f"as the {RAW} of an older collator does"
    return f"it has said nothing for {GREETING_SECONDS} s, {likely}"


def ended(expected: Port, *, reset: bool) -> str:
    """How to call a server that ends each connection before it has said anything."""
    if reset:
        return f"it resets connections, as the {RAW} does, and as servers do whose --allow does not admit this machine"
    likely = f"as the {BROADCAST} does" if expected is not BROADCAST else "as no server of a stream does"
    return f"it closes connections without an answer, {likely}, and a proxy without a server"
