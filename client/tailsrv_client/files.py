"""A small file that is replaced whole, durably, and one process that may do it."""

from __future__ import annotations

import contextlib
import os

from tailsrv_client.errors import CheckpointError
from tailsrv_runtime.errors import FatalError


def take(path: str) -> int:
    """Become the one process that uses `path`, through ``PATH.lock``. Returns the descriptor that holds it.

    The lock stands on a file of its own because `path` itself is replaced. Raises `CheckpointError`, `OSError`.
    """
    from tailsrv_runtime.files import lock, open_beside  # noqa: PLC0415 - tempfile is a quarter of this package's imports

    fd = open_beside(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    try:
        lock(fd, path)
    except FatalError as error:
        os.close(fd)
        raise CheckpointError(str(error)) from None
    return fd


def begin(path: str, content: bytes) -> int:
    """Begin a file that is to replace `path`: ``PATH.new`` with `content`. Returns a descriptor of it.

    So that a kill leaves no litter, it has a fixed name: only for the process that has taken `path`. Raises `OSError`.
    """
    from tailsrv_runtime.files import open_beside, write_at  # noqa: PLC0415 - as in `take`

    fd = open_beside(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(fd, content, 0)
    except BaseException:
        os.close(fd)
        discard(path)
        raise
    return fd


def discard(path: str) -> None:
    """Remove what `begin` has begun: on a full disk it takes the space that is needed most."""
    with contextlib.suppress(OSError):  # the next `begin` overwrites it
        os.unlink(f"{path}.new")


def replace(path: str, content: bytes) -> int:
    """Make `content` the file's, atomically and durably. Returns a descriptor of it. Only for who has taken `path`.

    Raises `OSError`: the file then has the old content or the new one, and the new one may not survive a power cut.
    """
    from tailsrv_runtime.files import sync_directory  # noqa: PLC0415 - as in `take`

    fd = begin(path, content)
    try:
        try:
            os.fdatasync(fd)
            os.rename(f"{path}.new", path)
        except BaseException:
            discard(path)
            raise
        sync_directory(path)
    except BaseException:
        os.close(fd)
        raise
    return fd
