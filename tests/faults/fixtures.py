"""Disks that can fail: images on loop devices, power cuts, a volatile cache, failed writeback, small tmpfs.

`isolate` moves the harness into a mount namespace of its own, so mounts end with the process, however it ends;
loop devices are detached by their last unmount, and helper processes die with their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.faults.scenario import MissingFixtureError, need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CLONE_NEWNS: Final = 0x00020000
_FS_IOC_SHUTDOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = struct.pack("I", 2)
_MEBIBYTE: Final = 1 << 20
_SIZE: Final = {
    "ext4": 192 * _MEBIBYTE,
    "ext4-nojournal": 192 * _MEBIBYTE,
    "ext4-small": 24 * _MEBIBYTE,
    "xfs": 320 * _MEBIBYTE,
}
_MAKE: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "ext4-nojournal": ("mkfs.ext4", "-q", "-F", "-O", "^has_journal"),
    "ext4-small": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # a name of the system; the folders in it are mkdtemp's
_PREFIX: Final = "faults-fixture-"
WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL")


def isolate() -> None:
    """Enter a private mount namespace. Raises MissingFixtureError without the right to."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise MissingFixtureError(f"mounting needs root: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")
    for left in (*_MEMORY.glob(f"{_PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)  # images of a run that was killed; its mounts went with it


def run(*command: str | Path) -> None:
    """Run a program of a fixture; raises with what it said when it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    if done.returncode != 0:
        raise MissingFixtureError(f"{' '.join(str(word) for word in command)}: {done.stderr.decode().strip()}")


def strace(*words: str) -> tuple[str, ...]:
    """Give what to put before a command for strace to run it: `-D` leaves the daemon our own child."""
    need("strace")
    return ("strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", "/dev/null", *words)


@contextlib.contextmanager
def fixture_folder() -> Iterator[Path]:
    """Give a folder for images, in memory where that can be had, gone afterwards."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    home = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


class Disk:
    """A file system in an image. `path` is where it is mounted."""

    def __init__(self, home: Path, kind: str) -> None:
        self.kind = kind
        self.image = home / f"{kind}.img"
        self.path = home / "mounted"
        self.path.mkdir()
        self.mounted = False
        with self.image.open("wb") as image:
            image.truncate(_SIZE[kind])
        need(kind.partition("-")[0])
        run(*_MAKE[kind], self.image)

    def mount(self, device: Path | None = None) -> None:
        """Mount the image, or the device that a fixture has put before it."""
        kind = self.kind.partition("-")[0]
        run("mount", "-t", kind, "-o", "loop", device or self.image, self.path)
        self.mounted = True

    def unmount(self) -> None:
        """Unmount; a file system that was shut down too. Everybody must have closed their files."""
        self.mounted = False
        for _ in range(50):
            if subprocess.run(["umount", self.path], capture_output=True, check=False).returncode == 0:
                return
            select.select([], [], [], 0.02)
        run("umount", "-l", self.path)

    def cut_power(self) -> None:
        """Shut the file system down as a power cut would: what was not synced is gone."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _FS_IOC_SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(handle)


@contextlib.contextmanager
def disk(kind: str) -> Iterator[Disk]:
    """Give an image with a fresh file system, mounted."""
    with fixture_folder() as home:
        made = Disk(home, kind)
        made.mount()
        try:
            yield made
        finally:
            if made.mounted:
                made.unmount()


@contextlib.contextmanager
def small_tmpfs(options: str) -> Iterator[Path]:
    """Mount a tmpfs with `options`, such as size=1m."""
    need("mount")
    with fixture_folder() as home:
        path = home / "tmpfs"
        path.mkdir()
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
        try:
            yield path
        finally:
            subprocess.run(["umount", "-l", path], capture_output=True, check=False)


class NetworkDisk:
    """A disk behind nbdkit and nbdfuse, so that a filter of nbdkit can lose or refuse what is written."""

    def __init__(self, disk: Disk, home: Path, *server: str) -> None:
        need("nbd")
        self.disk = disk
        self._socket = home / "nbd"
        self._device = home / "device"
        self._device.touch()
        self._server = self._spawn("nbdkit", "-f", "-U", str(self._socket), *server)
        self._wait(self._socket.exists)
        self._fuse = self._spawn("nbdfuse", str(self._device), f"nbd+unix:///?socket={self._socket}")
        self._wait(lambda: self._device.stat().st_size == _SIZE[disk.kind])
        disk.mount(self._device)

    @staticmethod
    def _spawn(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*WITH_PARENT, *command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @staticmethod
    def _wait(condition: object) -> None:
        deadline = time.monotonic() + 10
        while not (callable(condition) and condition()):
            if time.monotonic() > deadline:
                raise MissingFixtureError("nbdkit or nbdfuse does not start")
            select.select([], [], [], 0.01)

    def cut_power(self) -> None:
        """Take the server away with all that it has not flushed."""
        self._server.kill()
        self._server.wait()

    def close(self) -> None:
        """Unmount and end the helpers; the image stays."""
        if self.disk.mounted:
            self.disk.unmount()
        subprocess.run(["umount", "-l", self._device], capture_output=True, check=False)  # gone by itself after a cut
        for helper in (self._server, self._fuse):
            if helper.poll() is None:
                helper.send_signal(signal.SIGTERM)
                try:
                    helper.wait(5)
                except subprocess.TimeoutExpired:
                    helper.kill()
                    helper.wait()


@contextlib.contextmanager
def network_disk(kind: str, filter_words: Sequence[str]) -> Iterator[tuple[NetworkDisk, Path]]:
    """Mount a fresh file system through nbdkit with a filter; gives it and the folder for the filter's own files.

    `filter_words`: nbdkit's command line, in which {image} and {home} stand for the paths.
    """
    with fixture_folder() as home:
        made = Disk(home, kind)
        words = [word.format(image=made.image, home=home) for word in filter_words]
        device = NetworkDisk(made, home, *words)
        try:
            yield device, home
        finally:
            device.close()
            if made.mounted:
                made.unmount()


def volatile_cache(kind: str) -> contextlib.AbstractContextManager[tuple[NetworkDisk, Path]]:
    """Give a disk whose write cache is lost with the power, and written only by a flush."""
    return network_disk(kind, ("--filter=cache", "file", "{image}", "cache=writeback"))


def failing_writes(kind: str) -> contextlib.AbstractContextManager[tuple[NetworkDisk, Path]]:
    """Give a disk that refuses every write with EIO while the file `inject` exists."""
    words = ("--filter=error", "file", "{image}", "error=EIO", "error-pwrite-rate=100%", "error-file={home}/inject")
    return network_disk(kind, words)
