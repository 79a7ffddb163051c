"""A small file that is replaced whole, durably, and one process that may do it."""

from __future__ import annotations

import os

from tailsrv.kit.errors import FatalError
from tailsrv_client.errors import CheckpointError


def take(path: str) -> int:
    """Become the one process that uses `path`, through ``PATH.lock``. Returns the descriptor that holds it.

    The lock stands on a file of its own because `path` itself is replaced. Raises `CheckpointError`, `OSError`.
    """
    from tailsrv.kit.files import lock, open_beside  # noqa: PLC0415 - tempfile is a quarter of this package's imports

    fd = open_beside(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    try:
        lock(fd, path)
    except FatalError as error:
        os.close(fd)
        raise CheckpointError(str(error)) from None
    return fd


def replace(path: str, content: bytes) -> int:
    """Make `content` the file's, atomically and durably. Returns a descriptor of it. Only for who has taken `path`.

    So that a kill leaves no litter, the new file has a fixed name until it is renamed. Raises `OSError`.
    """
    from tailsrv.kit.files import open_beside, sync_directory, write_at  # noqa: PLC0415 - as in `take`

    fd = open_beside(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(fd, content, 0)
        os.fdatasync(fd)
        os.rename(f"{path}.new", path)
        sync_directory(path)
    except BaseException:
        os.close(fd)
        raise
    return fd
