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
    """Make `content` the file's, atomically and durably. Returns a descriptor of it."""
    from tailsrv.kit.files import create_beside, sync_directory  # noqa: PLC0415 - as in `take`

    fd = create_beside(path, content)
    sync_directory(path)
    return fd
