"""One file on its way to the collator: a followed file, its session, and the thread that runs it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tailsrv_client.blocking.connection import Connection, DialogueRunner, SuspendedError
from tailsrv_client.blocking.session_thread import SessionThread
from tailsrv_client.errors import GaveUpError
from tailsrv_client.protocol.dialogue import retry
from tailsrv_client.protocol.servers import Rotation
from tailsrv_client.protocol.session import Session, ask_acked_once
from tailsrv_client.put.followed_file import Head, ReplacedError
from tailsrv_client.put.resume_points import ResumePoint

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tailsrv_client.protocol.servers import Servers
    from tailsrv_client.protocol.session import Acked
    from tailsrv_client.put.followed_file import FollowedFile


class Shipment:
    """`file`, to be sent from `resume_point` on; None: not known before its first message is complete.

    `replaced`: it holds another content than it did before.
    """

    def __init__(
        self, file: FollowedFile, path: str, resume_point: ResumePoint | None = None, *, replaced: bool = False
    ) -> None:
        self.file: FollowedFile = file
        self.path: str = path
        self.resume_point: ResumePoint | None = resume_point
        self.replaced: bool = replaced
        head = None if resume_point is None else resume_point.head
        self.head: Head | None = None if head is None else Head(head)
        if head is not None:
            file.begin(head)
        elif resume_point is not None:
            file.resume(resume_point.shift, resume_point.offset)
        self.session: Session = Session("" if resume_point is None else resume_point.name, self.head or file)
        self.error: Exception | None = None
        self.quiet_since: float = time.monotonic()
        """When it was last seen to grow."""
        self.begun: bool = False
        """Whether the file, or its first message, is being sent or was."""
        self._reported_continued = False
        self._session_thread: SessionThread | None = None
        self._changed: Callable[[], None] = lambda: None

    @property
    def started(self) -> bool:
        """Whether it is being sent."""
        return self._session_thread is not None

    @property
    def waits(self) -> bool:
        """Whether there is nothing to be sent yet, also if what comes first is not complete: it needs no connection."""
        if self.started:
            return False
        if self.resume_point is None:
            return self.file.first_message() is None
        return self.head is None and not self.file.has_message(self.resume_point.acked)

    @property
    def complete(self) -> bool:
        """Whether all that can be sent at present is acknowledged."""
        return self.waits or (self.head is None and self.session.complete)

    @property
    def acked(self) -> int:
        """How many bytes of the stream are acknowledged, as far as is known."""
        return self.session.acked if self.resume_point is None else max(self.session.acked, self.resume_point.acked)

    @property
    def offset(self) -> int:
        """The first byte of the file that is not acknowledged."""
        return self.file.offset(self.acked)

    @property
    def offset_sent(self) -> int:
        """The first byte of the file that was not sent."""
        return self.file.offset(max(self.session.sent, self.acked))

    @property
    def is_over(self) -> bool:
        """Whether the file no longer holds what was sent of it: it was truncated in place."""
        if isinstance(self.error, ReplacedError):
            return True
        if self.resume_point is None or (self.head is not None and not self.session.complete):
            return False  # the first message is in memory: it is sent all the same
        return self.offset_sent > self.file.length or not self.file.holds(self.file.tail)

    def start(
        self,
        servers: Servers,
        guard: threading.Condition,
        changed: Callable[[], None],
        on_event: Callable[[str], None],
        outage: float | None,
    ) -> None:
        """Begin to send it. `changed` is called, in any thread, when there is news."""
        self.begun = True
        self._changed = changed
        self._session_thread = SessionThread(
            Rotation(servers),
            self.session,
            guard=guard,
            acknowledged=self._on_acked,
            failed=self._on_failed,
            on_event=on_event,
            outage=outage,
        )

    def after_head(self) -> Shipment | None:
        """The shipment of the rest of the file, once the first message is acknowledged; None before."""
        resume_point, head = self.resume_point, self.head
        if resume_point is None or head is None or not self.session.complete:
            return None
        self.stop()
        # A last line that was completed, and continued meanwhile, has no terminator in the file.
        shift = head.end if self.file.is_boundary(head.end) else head.end - 1
        rest = Shipment(self.file, self.path, ResumePoint(resume_point.rest, shift))
        rest.begun = True
        return rest

    def look(self) -> None:
        """Send what is new."""
        if self.file.look(0 if self.head else max(self.session.sent, self.acked)):
            self.quiet_since = time.monotonic()
            self.wake()

    def wake(self) -> None:
        """There may be more to send."""
        if self._session_thread is not None:
            self._session_thread.wake()

    def stop(self) -> None:
        """End the connection alone."""
        if self._session_thread is not None:
            self._session_thread.close()
            self._session_thread = None  # it refers to us: its descriptor would wait for the collector of cycles

    def was_continued(self) -> bool:
        """Whether a line was continued after it was completed and sent; True once for each shipment."""
        reported, self._reported_continued = (
            self._reported_continued,
            self._reported_continued or self.file.was_continued,
        )
        return self._reported_continued and not reported

    def _on_acked(self, _: Acked) -> None:
        self._changed()

    def _on_failed(self, error: Exception) -> None:
        self.error = error
        self._changed()


def ask_acked(servers: Servers, name: str, on_event: Callable[[str], None], outage: float | None) -> int:
    """The number of bytes that the collator has committed for `name`. Asks until a collator answers, or for `outage` s.

    Raises `WrongPortError`, `UnknownHostError`, `GaveUpError`.
    """
    rotation, connection = Rotation(servers), Connection()
    runner = DialogueRunner(connection, retry(rotation, lambda: ask_acked_once(rotation, name), on_event))
    try:
        return runner.resume(None if outage is None else time.monotonic() + outage)
    except SuspendedError:
        raise GaveUpError(f"no greeting for {outage} s ({rotation.last_error or rotation.address})") from None
    finally:
        runner.close()
