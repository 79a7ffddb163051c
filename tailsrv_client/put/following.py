"""`tailsrv-put --follow`: a growing file, through rotations, as producers that keep no state here.

Law: files are sent in the order in which they were written to: one that was rotated away is sent to its end, and its
last line completed, before the next one begins. Its end is known when no process has it open for writing; a writer
that keeps an old file open but quiet does not hold up the new one: from then on both are followed.
What rotation did while nobody looked is found by its traces: the files beside FILE, and what the collator has of each.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

from inotify_simple import INotify, flags

from collator.framing import make_framing
from tailsrv.client import Servers, parse_addresses
from tailsrv.client.ports import ACKNOWLEDGED
from tailsrv_client.errors import ClientError, GaveUpError, UnknownHostError, WrongPortError
from tailsrv_client.lane import check_name
from tailsrv_client.put.followed import FollowedFile, Identity, base_name, identify, producer_name, rotated_names
from tailsrv_client.put.shipping import Shipment, ask_acked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailsrv_client.put.options import Options
    from tailsrv_client.terminal import Progress

QUIET_SECONDS: Final = 2.0
"""How long a rotated file that still has a writer must be quiet before the next file begins."""

UNSURE_SECONDS: Final = 10.0
"""The same before its end is believed, where the kernel does not say who writes."""

_NAMES: Final = flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
_CONTENT: Final = flags.MODIFY | flags.CLOSE_WRITE


class Follower:
    """Ships `options.follow`. `tell` hears what an operator should know."""

    def __init__(self, options: Options, progress: Progress, tell: Callable[[str], None]) -> None:
        assert options.follow is not None  # noqa: S101 - the command line chose this mode
        self._path = os.path.abspath(options.follow)
        self._options = options
        self._servers = Servers(parse_addresses(options.addresses, ACKNOWLEDGED), ACKNOWLEDGED)
        self._base = check_name(options.name) if options.name else base_name(self._path, os.uname().nodename)
        self._framing = make_framing(options.framing, options.max_message_bytes)
        self._progress, self._tell = progress, tell
        self._guard = threading.Condition(threading.RLock())
        self._shipments: list[Shipment] = []
        self._seen = set[Identity]()
        self._shipped = 0
        self._inotify = INotify()
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run(self) -> None:
        """Follow for ever; with --once, until all that there is has been acknowledged."""
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # what who opens a file sends to who holds a lease on it
        self._inotify.add_watch(os.path.dirname(self._path), _NAMES | flags.ONLYDIR)
        self._find_rotated()
        self._find_live()
        self._catch_up()
        poller = select.poll()
        poller.register(self._inotify.fileno(), select.POLLIN)
        poller.register(self._news, select.POLLIN)
        try:
            while not self._advance():
                pause = self._pause()
                ready = [fd for fd, _ in poller.poll(None if pause is None else pause * 1000)]
                if self._news in ready:
                    os.eventfd_read(self._news)
                if self._inotify.fileno() in ready:
                    self._catch_up()
        finally:
            for shipment in self._shipments:
                shipment.close()

    # --- finding files

    def _find_rotated(self) -> None:
        """At the start: what was rotated before and is not acknowledged to its end."""
        copied = self._is_copied()
        for name in rotated_names(self._path):
            shipment = self._open(name)
            if shipment is None:
                continue
            acked = self._ask_acked(shipment.name)
            unknown = not acked and not shipment.life
            if self._is_done(shipment, acked) or (unknown and (copied or self._options.ignore_rotated)):
                shipment.close()
            else:
                self._add(shipment)

    def _is_done(self, shipment: Shipment, acked: int) -> bool:
        """Whether a rotated file is acknowledged to its end; while somebody can write to it, it has none."""
        writer = shipment.file.has_writer()
        shipment.look()
        if writer is None:
            writer = time.time() - os.fstat(shipment.file.fd).st_mtime < UNSURE_SECONDS
        # One byte more than there is: its last line was completed, so its end was seen.
        return acked > shipment.file.size or (acked == shipment.file.size and not writer)

    def _is_copied(self) -> bool:
        """Whether the live file was truncated before: then what lies beside it are copies of what was sent."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            identity, size = identify(fd), os.fstat(fd).st_size
        finally:
            os.close(fd)
        life = self._life(identity)
        return life > 0 or self._ask_acked(producer_name(self._base, identity, 0)) > size

    def _ask_acked(self, name: str) -> int:
        return ask_acked(self._servers, name, self._tell, self._options.timeout)

    def _find_live(self) -> None:
        shipment = self._open(self._path)
        if shipment is not None:
            self._add(shipment)

    def _open(self, path: str) -> Shipment | None:
        """The file called `path`, if it is there and new to us."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        identity = identify(fd)
        if identity in self._seen:
            os.close(fd)
            return None
        self._seen.add(identity)
        life = self._life(identity)
        return Shipment(FollowedFile(fd, self._framing), producer_name(self._base, identity, life), path, life)

    def _life(self, identity: Identity) -> int:
        """Which of its lives the file is in: one that has something acknowledged has ended the one before."""
        life = 0
        while self._ask_acked(producer_name(self._base, identity, life + 1)):
            life += 1
        return life

    def _add(self, shipment: Shipment) -> None:
        self._inotify.add_watch(f"/proc/self/fd/{shipment.file.fd}", _CONTENT)
        self._shipments.append(shipment)

    def _catch_up(self) -> None:
        """Until there are no news of names: what was rotated while we opened a file comes before that file."""
        while self._on_events():
            pass

    def _on_events(self) -> bool:
        """Take up what has happened. Returns whether any file was created or renamed."""
        own = os.path.basename(self._path)
        moved = set[str]()
        renamed = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                moved.update(map(os.path.basename, rotated_names(self._path)))
                renamed = True
            elif event.mask & _NAMES:
                renamed = renamed or event.name == own
                if event.mask & flags.MOVED_TO:
                    moved.add(event.name)
        # Copies that logrotate makes beside a file appear by creation, and are none of ours.
        for name in rotated_names(self._path) if moved else ():
            if os.path.basename(name) in moved:
                shipment = self._open(name)
                if shipment is not None:
                    self._add(shipment)
        if renamed:
            self._find_live()
        if moved:
            self._sort()
        return renamed or bool(moved)

    def _sort(self) -> None:
        """Those that have not begun go in the order in which they were written to, whatever they are called now."""
        age = dict[tuple[int, int], int]()
        for number, name in enumerate(rotated_names(self._path)):
            with contextlib.suppress(FileNotFoundError):  # renamed again: its event brings us back here
                status = os.stat(name)
                age[status.st_dev, status.st_ino] = number
        newest = len(age)
        self._shipments.sort(
            key=lambda one: -1 if one.started else age.get((one.file.identity.device, one.file.identity.inode), newest)
        )

    # --- sending them

    def _advance(self) -> bool:
        """Do what can be done now. Returns whether there is nothing left to do, for --once."""
        waits = False
        for number, shipment in enumerate(list(self._shipments)):
            with self._guard:
                shipment.look()
                error, truncated = shipment.error, shipment.sent_beyond
            if truncated or shipment.over:
                self._shipments[number] = shipment = self._next_life(shipment)  # noqa: PLW2901 - the same file
            elif isinstance(error, (GaveUpError, UnknownHostError, WrongPortError)):
                raise error
            elif error is not None:
                raise ClientError(f"{shipment.path}, at byte {shipment.lane.acked}: {error}") from error
            if not shipment.started:
                if waits:
                    break
                shipment.start(self._servers, self._guard, self._on_news, self._tell, self._options.timeout)
            waits = waits or not self._is_out_of_the_way(shipment)
        done = [shipment for shipment in self._shipments if self._is_over(shipment)]
        for shipment in done:
            self._shipped += shipment.lane.acked
            shipment.close()
            self._shipments.remove(shipment)
        with self._guard:
            self._progress.at(self._shipped + sum(shipment.lane.acked for shipment in self._shipments))
        return self._advance() if done else self._options.once and self._is_all_acked()

    def _is_all_acked(self) -> bool:
        with self._guard:
            return all(shipment.lane.complete for shipment in self._shipments)

    def _is_rotated(self, shipment: Shipment) -> bool:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            # Moved away and not yet replaced: it may be moved back, unless there are newer files already.
            return shipment is not self._shipments[-1]
        try:
            return identify(fd) != shipment.file.identity
        finally:
            os.close(fd)

    def _is_out_of_the_way(self, shipment: Shipment) -> bool:
        """Whether the next file may begin: this one is rotated, sent, and no longer written to."""
        with self._guard:
            complete = shipment.lane.complete
        quiet = time.monotonic() - shipment.quiet_since >= QUIET_SECONDS
        return complete and quiet and self._is_rotated(shipment)

    def _is_over(self, shipment: Shipment) -> bool:
        """Whether a file is rotated, written to its end, and acknowledged to it."""
        if not shipment.started or not self._is_rotated(shipment):
            return False
        writer = shipment.file.has_writer()
        if writer or (writer is None and time.monotonic() - shipment.quiet_since < UNSURE_SECONDS):
            return False
        with self._guard:
            shipment.look()
            if not shipment.lane.greeted:
                return False
            rest = shipment.file.finish(shipment.lane.acked)
            shipment.wake()
            complete = shipment.lane.complete
        if rest:
            self._tell(f"{shipment.path}: its last {rest} bytes are no whole message; they were not sent")
        return complete or bool(rest)

    def _next_life(self, shipment: Shipment) -> Shipment:
        """The file was truncated in place: what it holds now is the stream of another producer."""
        shipment.stop()
        sent, size = max(shipment.lane.sent, shipment.lane.acked), shipment.file.size
        self._tell(
            f"{shipment.path} was truncated in place: it has {size} bytes, {sent} were sent"
            if shipment.error is None
            else f"{shipment.path} was truncated in place while nobody looked ({shipment.error})"
        )
        self._tell("what was written between the last look and the truncation is lost; rename-and-create loses nothing")
        life = shipment.life + 1
        name = producer_name(self._base, shipment.file.identity, life)
        return Shipment(shipment.file, name, shipment.path, life)

    def _pause(self) -> float | None:
        """Seconds until quiet becomes meaningful; None: only an event changes anything. Idle means idle."""
        if len(self._shipments) < 2 and not any(map(self._is_rotated, self._shipments)):
            return None
        now = time.monotonic()
        limits = (QUIET_SECONDS, UNSURE_SECONDS)
        waits = [one.quiet_since + limit - now for one in self._shipments if one.started for limit in limits]
        return min((wait for wait in waits if wait > 0), default=None)

    def _on_news(self) -> None:
        os.eventfd_write(self._news, 1)
