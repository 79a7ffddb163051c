"""One file on its way to the collator: a followed file, its lane, and the thread that serves it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tailsrv_client.blocking.connection import Conversation, Line, SuspendedError
from tailsrv_client.blocking.link import Link
from tailsrv_client.errors import GaveUpError
from tailsrv_client.protocol import session as lane
from tailsrv_client.protocol.dialogue import persistently
from tailsrv_client.protocol.servers import Rotation
from tailsrv_client.put.file_places import Place
from tailsrv_client.put.followed_file import Head, ReplacedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tailsrv_client.protocol.servers import Servers
    from tailsrv_client.protocol.session import Acked
    from tailsrv_client.put.followed_file import FollowedFile


class Shipment:
    """`file`, to be sent from `place` on; None: not known before its first message is complete.

    `replaced`: it holds another content than it did before.
    """

    def __init__(self, file: FollowedFile, path: str, place: Place | None = None, *, replaced: bool = False) -> None:
        self.file, self.path, self.place, self.replaced = file, path, place, replaced
        head = None if place is None else place.head
        self.head = None if head is None else Head(head)
        if head is not None:
            file.begin(head)
        elif place is not None:
            file.go_on(place.shift, place.offset)
        self.lane = lane.Lane("" if place is None else place.name, self.head or file)
        self.error: Exception | None = None
        self.quiet_since = time.monotonic()
        """When it was last seen to grow."""
        self.begun = False
        """Whether the file, or its first message, is being sent or was."""
        self._told_continued = False
        self._link: Link | None = None
        self._changed: Callable[[], None] = lambda: None

    @property
    def started(self) -> bool:
        """Whether it is being sent."""
        return self._link is not None

    @property
    def waits(self) -> bool:
        """Whether there is nothing to be sent yet, also if what comes first is not complete: it needs no connection."""
        if self.started:
            return False
        if self.place is None:
            return self.file.first_message() is None
        return self.head is None and not self.file.has_message(self.place.acked)

    @property
    def complete(self) -> bool:
        """Whether all that can be sent at present is acknowledged."""
        return self.waits or (self.head is None and self.lane.complete)

    @property
    def acked(self) -> int:
        """How many bytes of the stream are acknowledged, as far as is known."""
        return self.lane.acked if self.place is None else max(self.lane.acked, self.place.acked)

    @property
    def offset(self) -> int:
        """The first byte of the file that is not acknowledged."""
        return self.file.offset(self.acked)

    @property
    def offset_sent(self) -> int:
        """The first byte of the file that was not sent."""
        return self.file.offset(max(self.lane.sent, self.acked))

    @property
    def is_over(self) -> bool:
        """Whether the file no longer holds what was sent of it: it was truncated in place."""
        if isinstance(self.error, ReplacedError):
            return True
        if self.place is None or (self.head is not None and not self.lane.complete):
            return False  # the first message is in memory: it is sent all the same
        return self.offset_sent > self.file.length or not self.file.holds(self.file.tail)

    def start(
        self,
        servers: Servers,
        guard: threading.Condition,
        changed: Callable[[], None],
        tell: Callable[[str], None],
        outage: float | None,
    ) -> None:
        """Begin to send it. `changed` is called, in any thread, when there is news."""
        self.begun = True
        self._changed = changed
        self._link = Link(
            Rotation(servers),
            self.lane,
            guard=guard,
            acknowledged=self._on_acked,
            failed=self._on_failed,
            tell=tell,
            outage=outage,
        )

    def after_head(self) -> Shipment | None:
        """What comes behind the first message, when that is acknowledged."""
        place, head = self.place, self.head
        if place is None or head is None or not self.lane.complete:
            return None
        self.stop()
        # A last line that was completed, and continued meanwhile, has no terminator in the file.
        shift = head.end if self.file.is_boundary(head.end) else head.end - 1
        rest = Shipment(self.file, self.path, Place(place.rest, shift))
        rest.begun = True
        return rest

    def look(self) -> None:
        """Send what is new."""
        if self.file.look(0 if self.head else max(self.lane.sent, self.acked)):
            self.quiet_since = time.monotonic()
            self.wake()

    def wake(self) -> None:
        """There may be more to send."""
        if self._link is not None:
            self._link.wake()

    def stop(self) -> None:
        """End the connection alone."""
        if self._link is not None:
            self._link.close()
            self._link = None  # it refers to us: its descriptor would wait for the collector of cycles

    def was_continued(self) -> bool:
        """Whether a line was continued after it was completed and sent; True once for each shipment."""
        told, self._told_continued = self._told_continued, self._told_continued or self.file.was_continued
        return self._told_continued and not told

    def _on_acked(self, _: Acked) -> None:
        self._changed()

    def _on_failed(self, error: Exception) -> None:
        self.error = error
        self._changed()


def ask_acked(servers: Servers, name: str, tell: Callable[[str], None], outage: float | None) -> int:
    """How many bytes the collator has under `name`. Asks until somebody answers, or for `outage` seconds.

    Raises `WrongPortError`, `UnknownHostError`, `GaveUpError`.
    """
    rotation, line = Rotation(servers), Line()
    conversation = Conversation(line, persistently(rotation, lambda: lane.ask_acked(rotation, name), tell))
    try:
        return conversation.go_on(None if outage is None else time.monotonic() + outage)
    except SuspendedError:
        raise GaveUpError(f"no greeting for {outage} s ({rotation.trouble or rotation.address})") from None
    finally:
        conversation.close()
