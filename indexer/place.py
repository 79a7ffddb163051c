"""Where an index may be: never in the place of the stream, or of a file that another daemon keeps beside it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from tailsrv.kit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPANIONS: Final = re.compile(r"|\.(?:commit|producers|base|positions|rescued-.*|\d{20})")
"""What the names of a stream's files have after the stream's own: PROTOCOLS, section 11."""


def check_place(file: str, index: str) -> None:
    """Raise `UsageError` where `index` is the stream `file` or one of its companions, under whatever name."""
    if _is_companion(os.path.realpath(file), os.path.realpath(index)) or any(
        _is_same(index, companion) for companion in _companions(file)
    ):
        raise UsageError(f"--index {index} is the stream {file} or one of its files; name another file")


def _is_companion(file: str, index: str) -> bool:
    return index.startswith(file) and COMPANIONS.fullmatch(index[len(file) :]) is not None


def _companions(file: str) -> Iterator[str]:
    """The stream and those of its companions that are there."""
    directory, name = os.path.split(file)
    try:
        entries = os.listdir(directory or ".")
    except OSError:
        return  # no directory, no companions; what is wrong with it is found when FILE is opened
    for entry in entries:
        if entry.startswith(name) and COMPANIONS.fullmatch(entry[len(name) :]):
            yield os.path.join(directory, entry)


def _is_same(one: str, other: str) -> bool:
    """Whether two names mean one file: by a hard link, or by a link to it."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
