"""From the file to a socket.

sendfile hands the socket the pages of the kernel's cache themselves. When the file is cut inside such a page (which may
be megabytes large) before the peer has read it, the kernel overwrites the rest of the page with zeros, and those are
what the peer gets in the place of bytes that it should have had. So a file without a commit mark that has been cut once
is copied from then on, at two and a half times the processor time. A stream with a mark is cut only beyond it, where
nothing has been sent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tailsrv.subscriber import Subscriber
    from tailsrv_runtime.stream import Stream

COPY_BYTES: Final = 1 << 18
"""At a time; more would not stay in the processor's cache between the two copies."""


def send_range(subscriber: Subscriber, stream: Stream, offset: int, most: int) -> int:
    """Give the subscriber's socket up to `most` of the stream's bytes from `offset` on; how many it took.

    0 when the file ends there. Raises `OSError`, of the file or of the socket; `BlockingIOError` when it has no room.
    """
    if not stream.has_shrunk or stream.committed is not None:
        return os.sendfile(subscriber.fd, stream.fd, offset, most)
    data = os.pread(stream.fd, min(most, COPY_BYTES), offset)
    return subscriber.send(data) if data else 0
