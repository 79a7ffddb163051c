r"""The file of a spool, format 1, which was written before format 2. Only read.

    tailsrv-spool 1 NAME FRAMING BASE CRC32\n
    message message message …

It has no checksums: damage is known as far as the framing can tell. One message at its end that is not whole was torn
by a crash; the file is then kept under another name, because a damaged length can look the same. A length that no
message can have is an error. Which limit the writer had is not known, so a message may be as long as the file.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from tailsrv_client.errors import CheckpointError
from tailsrv_formats.framing import DEFAULT_MAX_MESSAGE_BYTES, FramingError, make_framing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tailsrv_client.spoolfile import SpoolFile
    from tailsrv_formats.framing import Framing

LOG = logging.getLogger("tailsrv_client")

PIECE_BYTES: Final = 1 << 20


def messages(old: SpoolFile, framing: str) -> Iterator[bytes]:
    """Its messages, in pieces of whole ones. Raises `CheckpointError` that names the byte where they stop."""
    size = os.fstat(old.fd).st_size
    codec = make_framing(framing, max(DEFAULT_MAX_MESSAGE_BYTES, size) + DEFAULT_MAX_MESSAGE_BYTES)
    at, limit = old.begin, PIECE_BYTES
    while at < size:
        data = os.pread(old.fd, limit, at)
        end, _ = codec.walk(data, 0, len(data))
        if end:
            yield data[:end]
            at += end
            limit = PIECE_BYTES
        elif at + len(data) < size:
            limit *= 2
        else:
            _keep_torn(old.path, at, codec, data)
            return


def _keep_torn(path: str, at: int, codec: Framing, data: bytes) -> None:
    """What follows the last whole message. Raises `CheckpointError` unless it can be the beginning of a message."""
    try:
        missing, why = codec.missing(data, 0, len(data)), "a message begins there that is longer than the file"
    except FramingError as error:
        missing, why = DEFAULT_MAX_MESSAGE_BYTES + 1, str(error).partition(";")[0]
    if missing > DEFAULT_MAX_MESSAGE_BYTES:
        raise CheckpointError(
            f"the spool {path} is damaged at byte {at}: {why}. It was left as it is, and nothing of it is sent."
            f" Restore it from a copy, or keep what comes before the damage: truncate -s {at} {path}"
        )
    kept = f"{path}.v1"
    try:
        os.link(path, kept)
    except FileExistsError:
        raise CheckpointError(f"the spool {path} ends within a message, and {kept} exists: move that away") from None
    LOG.warning(
        "the spool %s was cut off by a crash: its last %d bytes are no whole message; the old file is kept as %s",
        path,
        len(data),
        kept,
    )
