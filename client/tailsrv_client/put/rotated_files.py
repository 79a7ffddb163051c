"""What rotation leaves next to a file, known by its name."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROTATED: Final = re.compile(r"[.-](?:\d[\d.T:_-]*|old)")
"""What logrotate and its like append to a name."""

COMPRESSED: Final = (".gz", ".xz", ".bz2", ".zst", ".lz4")


def rotated_names(path: str) -> list[str]:
    """What is there next to `path` that rotation may have made of it, the oldest first."""
    found = [(written, _age(suffix), name) for written, suffix, name in _files(path) if ROTATED.fullmatch(suffix)]
    return [name for _, _, name in sorted(found)]


def compressed_names(path: str) -> list[tuple[int, str]]:
    """What was rotated and compressed: when it was last written to, in nanoseconds, and its name; the oldest first."""
    found = []
    for written, suffix, name in _files(path):
        stem, kind = os.path.splitext(suffix)
        if kind in COMPRESSED and ROTATED.fullmatch(stem):
            found.append((written, name))
    return sorted(found)


def _files(path: str) -> Iterator[tuple[int, str, str]]:
    """The regular files whose names begin as `path` does: when each was last written to, its suffix, its name."""
    directory, own = os.path.split(os.path.abspath(path))
    with os.scandir(directory) as entries:
        for entry in entries:
            suffix = entry.name.removeprefix(own)
            if suffix == entry.name:
                continue
            # Renamed since it was listed: the event of that brings us back.
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime_ns, suffix, entry.path


def _age(suffix: str) -> tuple[int, str]:
    """For files written within one tick of the clock: .2 is older than .1, and 20260101 than 20260102."""
    digits = suffix[1:]
    return (-int(digits), "") if digits.isdigit() and len(digits) < 6 else (0, suffix)
