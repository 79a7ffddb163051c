"""One file on its way to the collator: a followed file, its lane, and the thread that serves it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from tailsrv.client import Rotation
from tailsrv.client.line import Conversation, Line, SuspendedError
from tailsrv.client.talk import persistently
from tailsrv_client import lane
from tailsrv_client.errors import GaveUpError, ProducerDiverged
from tailsrv_client.link import Link

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tailsrv.client import Servers
    from tailsrv_client.lane import Acked
    from tailsrv_client.put.followed import FollowedFile


class Shipment:
    """`file` under the producer's name `name`. `changed` is called, in any thread, when there is news."""

    def __init__(self, file: FollowedFile, name: str, path: str, life: int) -> None:
        self.file, self.name, self.path, self.life = file, name, path, life
        self.lane = lane.Lane(name, file)
        self.error: Exception | None = None
        self.quiet_since = time.monotonic()
        """When it was last seen to grow."""
        self._link: Link | None = None
        self._changed: Callable[[], None] = lambda: None

    @property
    def started(self) -> bool:
        """Whether it is being sent."""
        return self._link is not None

    @property
    def sent_beyond(self) -> bool:
        """Whether more was sent of it than it holds: it was truncated in place."""
        return max(self.lane.sent, self.lane.acked) > self.file.end

    def start(
        self,
        servers: Servers,
        guard: threading.Condition,
        changed: Callable[[], None],
        tell: Callable[[str], None],
        outage: float | None,
    ) -> None:
        """Begin to send it."""
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

    def look(self) -> None:
        """Send what is new."""
        if self.file.look():
            self.quiet_since = time.monotonic()
            if self._link is not None:
                self._link.wake()

    def wake(self) -> None:
        """There is more to send, though the file has not grown."""
        if self._link is not None:
            self._link.wake()

    def close(self) -> None:
        """End the connection, and close the file."""
        self.stop()
        with contextlib.suppress(OSError):  # closed by an earlier life of the same file
            self.file.close()

    def stop(self) -> None:
        """End the connection alone."""
        if self._link is not None:
            self._link.close()

    def _on_acked(self, _: Acked) -> None:
        self._changed()

    def _on_failed(self, error: Exception) -> None:
        self.error = error
        self._changed()

    @property
    def over(self) -> bool:
        """Whether the collator knows a longer file of this name: what we have was truncated while nobody looked."""
        return isinstance(self.error, ProducerDiverged)


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
