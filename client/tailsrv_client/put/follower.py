"""`tailsrv-put --follow`: a growing file, through rotations, without any state of its own (see `resume_points`).

Law: files are sent in the order in which they were written to: one that was rotated away is sent to its end, and its
last line completed, before the next one begins. Its end is known when no process has it open for writing; a writer
that keeps an old file open but quiet does not hold up the new one: from then on both are followed.
`Backlog` finds rotations that happened while the command did not run: from the files next to FILE and their ACKED.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

from tailsrv_client.errors import GaveUpError, UnknownHostError, WrongPortError
from tailsrv_client.protocol.ports import ACKNOWLEDGED
from tailsrv_client.protocol.servers import Servers, parse_addresses
from tailsrv_client.protocol.session import check_name
from tailsrv_client.put import inotify
from tailsrv_client.put.backlog import UNSURE_SECONDS, Backlog, continued, report_result
from tailsrv_client.put.opened_files import OpenedFiles
from tailsrv_client.put.resume_points import Names, base_name, find_later
from tailsrv_client.put.rotated_files import rotated_names
from tailsrv_client.put.shipment import Shipment, ask_acked
from tailsrv_formats.errors import TailsrvError
from tailsrv_formats.framing import make_framing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.progress import Progress
    from tailsrv_client.put.followed_file import Identity
    from tailsrv_client.put.options import Options

QUIET_SECONDS: Final = 2.0
"""How long a rotated file that still has a writer must be quiet before the next file begins."""

FILES: Final = 1000
"""How many files are open at most; of a longer backlog the newer ones have to wait."""

OTHER_DESCRIPTORS: Final = 40
"""What is needed besides the files: a handful, and three for each connection."""

_NAMES: Final = inotify.ATTRIB | inotify.CREATE | inotify.MOVED_TO | inotify.MOVED_FROM | inotify.DELETE
_CONTENT: Final = inotify.MODIFY | inotify.CLOSE_WRITE


class Follower:
    """Ships `options.follow`. `on_event` is called with each report for the operator."""

    def __init__(self, options: Options, progress: Progress, on_event: Callable[[str], None]) -> None:
        assert options.follow is not None  # noqa: S101 - the command line chose this mode
        self._path = os.path.abspath(options.follow)
        self._options = options
        self._servers = Servers(parse_addresses(options.addresses, ACKNOWLEDGED), ACKNOWLEDGED)
        self._base = check_name(options.name) if options.name else base_name(self._path, os.uname().nodename)
        framing = make_framing(options.framing, options.max_message_bytes)
        self._files = OpenedFiles(self._path, framing, on_event)
        self._backlog = Backlog(self._files, self._path, self._base, self._ask_acked, on_event)
        self._live: Identity | None = None
        """What FILE is, as of the last look."""
        self._progress, self._on_event = progress, on_event
        self._guard = threading.Condition(threading.RLock())
        self._shipments: list[Shipment] = []
        self._shipped = 0
        self._looking_back = True
        """Whether there may be rotated files that were not sent and are not open; FILE waits until there are none."""
        self._most = _descriptors() - OTHER_DESCRIPTORS
        self._inotify = inotify.INotify()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run(self) -> None:
        """Follow for ever; with --once, until all that there is has been acknowledged."""
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when a process opens a file under our lease
        self._inotify.add_watch(os.path.dirname(self._path), _NAMES | inotify.ONLYDIR)
        self._backlog.look_at_live()
        self._look_back()
        self._catch_up()
        poller = select.poll()
        poller.register(self._inotify.fileno(), select.POLLIN)
        poller.register(self._wakeup, select.POLLIN)
        try:
            while not self._advance():
                pause = self._pause()
                ready = [fd for fd, _ in poller.poll(None if pause is None else pause * 1000)]
                if self._wakeup in ready:
                    os.eventfd_read(self._wakeup)
                if self._inotify.fileno() in ready:
                    self._catch_up()
        finally:
            for shipment in self._shipments:
                self._close(shipment)

    # --- finding files

    def _look_back(self) -> None:
        """Open the rotated files that were not sent, the oldest first, as many as there is room for; then FILE."""
        for shipment in self._backlog.shipments(ignore_unknown=self._options.ignore_rotated):
            self._add(shipment)
            if len(self._shipments) >= self._most:
                return
        self._looking_back = False
        self._backlog.report_compressed()
        self._find_live()

    def _ask_acked(self, name: str) -> int:
        for shipment in self._shipments:
            if shipment.started and shipment.session.name == name and shipment.session.greeted:
                return shipment.session.acked  # to ask would end its connection
        return ask_acked(self._servers, name, self._on_event, self._options.timeout)

    def _find_live(self) -> None:
        """Follow FILE, if it is there and not open."""
        file = self._files.open(self._path)
        if file is not None:
            self._add(Shipment(file, self._path))

    def _add(self, shipment: Shipment) -> None:
        self._watch(shipment)
        self._shipments.append(shipment)

    def _watch(self, shipment: Shipment) -> None:
        self._inotify.add_watch(f"/proc/self/fd/{shipment.file.fd}", _CONTENT)

    def _catch_up(self) -> None:
        """Until there are no news of names: what was rotated while we opened a file comes before that file."""
        while self._read_events():
            pass

    def _read_events(self) -> bool:
        """Take up what has happened. Returns whether any file was created or renamed."""
        own = os.path.basename(self._path)
        moved = set[str]()
        renamed = False
        for event in self._inotify.read():
            if event.mask & inotify.Q_OVERFLOW:
                moved.update(map(os.path.basename, rotated_names(self._path)))
                renamed = True
            elif event.mask & _NAMES:
                renamed = renamed or event.name == own
                if event.mask & inotify.MOVED_TO or self._becomes_readable(event):
                    moved.add(event.name)
        if moved and not self._looking_back:
            self._open_moved(moved)
        if renamed or moved:
            self._files.forget_deleted()
        if renamed and not self._looking_back:
            self._find_live()
        if moved:
            self._sort()
        return renamed or bool(moved)

    def _becomes_readable(self, event: inotify.Event) -> bool:
        path = os.path.join(os.path.dirname(self._path), event.name)
        return bool(event.mask & inotify.ATTRIB) and path in self._files.unreadable

    def _open_moved(self, names: set[str]) -> None:
        # A copy that logrotate makes next to FILE appears by creation; it is looked for when FILE was truncated.
        for name in rotated_names(self._path):
            shipment = self._backlog.shipment(name) if os.path.basename(name) in names else None
            if shipment is not None:
                self._add(shipment)

    def _sort(self) -> None:
        """Those that have not begun go in the order in which they were written to, whatever they are called now.

        FILE is the last one, also if it has begun: what was rotated before and has grown since need not wait for it.
        """
        live = self._files.live()
        age = dict[tuple[int, int], int]()
        for number, name in enumerate(rotated_names(self._path)):
            with contextlib.suppress(FileNotFoundError):  # renamed again: its event brings us back here
                status = os.stat(name)
                age[status.st_dev, status.st_ino] = number
        newest = len(age)

        def order(one: Shipment) -> int:
            identity = one.file.identity
            return -1 if one.begun and identity != live else age.get((identity.device, identity.inode), newest)

        self._shipments.sort(key=order)

    # --- sending them

    def _advance(self) -> bool:
        """Do what can be done now. Returns whether there is nothing left to do, for --once.

        Raises `TailsrvError` where --once has nothing left but what can't be read.
        """
        while self._go_round():
            pass
        if not (self._options.once and self._is_all_acked()):
            return False
        if self._files.unreadable:
            raise TailsrvError(f"not sent, because they cannot be read: {', '.join(sorted(self._files.unreadable))}")
        return True

    def _go_round(self) -> bool:
        """Bring each shipment forward. Returns whether some are over, so that others may begin."""
        self._live = self._files.live()
        waits = False
        number = 0
        while number < len(self._shipments):
            shipment = self._shipments[number]
            brought = self._brought_forward(shipment)
            if brought != [shipment]:
                self._shipments[number : number + 1] = brought
                continue
            if not shipment.started and not shipment.waits:
                if waits and not shipment.begun:
                    break
                shipment.start(self._servers, self._guard, self._wake, self._on_event, self._options.timeout)
            waits = waits or not self._is_out_of_the_way(shipment)
            number += 1
        done = [shipment for shipment in self._shipments if self._is_over(shipment)]
        for shipment in done:
            self._shipped += shipment.offset
            self._close(shipment)
            self._shipments.remove(shipment)
        if done and self._looking_back:
            self._look_back()
        with self._guard:
            self._progress.at(self._shipped + sum(shipment.offset for shipment in self._shipments))
        return bool(done)

    def _brought_forward(self, shipment: Shipment) -> list[Shipment]:
        """The shipment, or what takes its place: what comes next of its file, or another content of it."""
        with self._guard:
            shipment.look()
            error, over = shipment.error, shipment.is_over
        if over:
            return self._next_life(shipment)
        if isinstance(error, (GaveUpError, UnknownHostError, WrongPortError)):
            raise error
        if error is not None:
            raise TailsrvError(f"{shipment.path}, at byte {shipment.offset}: {error}") from error
        if shipment.was_continued():
            self._on_event(continued(shipment.path))
        rest = shipment.after_head()
        return [rest or self._with_resume_point(shipment)]

    def _with_resume_point(self, shipment: Shipment) -> Shipment:
        """The same with its place, if it has none and its first message is there."""
        file, path = shipment.file, shipment.path
        if shipment.resume_point is not None:
            return shipment
        if shipment.replaced:
            found = find_later(file, Names(self._base, file.identity), self._ask_acked)
        else:
            found = self._backlog.find(file, rotated=file.was_rotated or self._is_rotated(shipment))
        if found is None:
            return shipment
        if not shipment.replaced:
            report_result(found, file, path, self._on_event)
        return Shipment(file, path, found.resume_point)

    def _close(self, shipment: Shipment) -> None:
        shipment.stop()
        self._files.close(shipment.file)

    def _is_all_acked(self) -> bool:
        with self._guard:
            return not self._looking_back and all(
                shipment.complete and not self._may_be_completed(shipment) for shipment in self._shipments
            )

    def _may_be_completed(self, shipment: Shipment) -> bool:
        """Whether its last line has no end and will be completed, once it has been quiet for long enough."""
        file = shipment.file
        return self._is_rotated(shipment) and not file.is_whole and file.has_writer() is None

    def _is_rotated(self, shipment: Shipment) -> bool:
        if self._live is None:
            # Moved away and not yet replaced: it may be moved back, unless there are newer files already.
            return shipment is not self._shipments[-1]
        return self._live != shipment.file.identity

    def _is_out_of_the_way(self, shipment: Shipment) -> bool:
        """Whether the next file may begin: this one is rotated, sent, and no longer written to."""
        with self._guard:
            complete = shipment.complete and not self._may_be_completed(shipment)
        quiet = time.monotonic() - shipment.quiet_since >= QUIET_SECONDS
        return complete and quiet and self._is_rotated(shipment)

    def _is_over(self, shipment: Shipment) -> bool:
        """Whether a file is rotated, written to its end, and acknowledged to it."""
        if not (shipment.started or shipment.waits) or not self._is_rotated(shipment):
            return False
        writer = shipment.file.has_writer()
        if writer or (writer is None and time.monotonic() - shipment.quiet_since < UNSURE_SECONDS):
            return False
        with self._guard:
            shipment.look()
            if shipment.started and not shipment.session.greeted:
                return False
            rest = 0 if shipment.head else shipment.file.finish(shipment.acked)
            shipment.wake()
            complete = shipment.complete
        if not shipment.started and not complete:
            self._wake()  # its only line is complete now
        if rest:
            self._on_event(f"{shipment.path}: its last {rest} bytes are an incomplete message and were not sent")
        return complete or bool(rest)

    def _next_life(self, shipment: Shipment) -> list[Shipment]:
        """The file was truncated in place: what it holds now is the stream of another producer."""
        shipment.stop()
        file, path = shipment.file, shipment.path
        self._on_event(f"{path} was truncated in place after {shipment.offset_sent} of its bytes were sent")
        resume_point, copies = shipment.resume_point, list[Shipment]()
        if resume_point is not None:
            self._backlog.was_truncated(resume_point.rest or resume_point.name, file.tail)
            if not self._looking_back:  # else they come in their turn
                copies = list(self._backlog.shipments())
        for copy in copies:
            self._watch(copy)
        if not copies:
            self._on_event(
                f"{path}: lines that were not sent before the truncation, and are in no copy next to it, are lost"
            )
        return [*copies, Shipment(file, path, replaced=True)]

    def _pause(self) -> float | None:
        """Seconds until quiet becomes meaningful; None: only an event changes anything. Idle means idle."""
        if len(self._shipments) < 2 and not any(map(self._is_rotated, self._shipments)):
            return None
        now = time.monotonic()
        limits = (QUIET_SECONDS, UNSURE_SECONDS)
        waits = [one.quiet_since + limit - now for one in self._shipments for limit in limits]
        return min((wait for wait in waits if wait > 0), default=None)

    def _wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)


def _descriptors() -> int:
    """How many this process may have open; the soft limit is raised as far as it helps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES + OTHER_DESCRIPTORS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(soft, wanted)
