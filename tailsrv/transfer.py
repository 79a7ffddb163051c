"""Sending a range of the file to one socket.

sendfile does not copy: the socket's queue refers to the pages of the page cache. When the file is truncated in the
middle of such a page (which may have megabytes) before the client has received it, the kernel fills the rest of the
page with zeros, and the client receives these zeros in place of the bytes. So once a file without a commit mark has
been truncated, its bytes are copied, which takes two and a half times the processor time. A stream with a mark is
truncated only beyond the mark, where nothing has been sent.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from tailsrv_formats.errors import reason
from tailsrv_runtime.errors import FatalError

if TYPE_CHECKING:
    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.stream import Stream

COPY_BYTES: Final = 1 << 18
"""Bytes that one call copies; more would not fit into the processor's cache between the two copies."""

FILE_ERRORS: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ENODATA}
)
"""Errors of sendfile that concern the file. All others concern the socket: the client has disconnected."""


def send_range(subscriber: Subscriber, stream: Stream, offset: int, most: int) -> int:
    """Send up to `most` bytes of the file from `offset` on. Returns how many the socket accepted.

    Returns 0 when the file ends at `offset`. Raises `BlockingIOError` when the socket has no room, and other `OSError`s
    of the file (`FILE_ERRORS`) or of the socket.
    """
    if not stream.has_shrunk or stream.committed is not None:
        return os.sendfile(subscriber.fd, stream.fd, offset, most)
    data = os.pread(stream.fd, min(most, COPY_BYTES), offset)
    return subscriber.send(data) if data else 0


def unreadable(path: str, offset: int, error: OSError) -> FatalError:
    """The error that ends the daemon when its file cannot be read."""
    return FatalError(f"cannot read {path} at byte {offset}: {reason(error)}; check the disk or the file system")
