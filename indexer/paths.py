"""Which paths an index may have, and which names its older copies get.

An index is derived; the files beside FILE are not. So no path is used that means FILE or one of its companions, however
it is written (a link, another path, a hard link), and no other file is ever overwritten.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from indexer.options import SUFFIX
from tailsrv_formats.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ASIDE: Final = ".old"
"""The suffix of an index that was set aside; further copies are numbered."""

COPIES: Final = 4
"""How many copies are kept, the first ones. They can be large, and a stream that is replaced daily makes one a day."""

_COMPANION: Final = re.compile(
    r"(\.\d{20}|(\.(producers|positions)(\.base|\.\d{20})?)|\.(commit|base)|\.rescued-.*)?", re.DOTALL
)
"""What follows FILE in the names of its companions; nothing: FILE itself."""


def refuse_companion(file: str, index: str) -> None:
    """Raise `UsageError` if `index` means FILE or one of its companions."""
    what = _companion(file, index)
    if what is not None:
        raise UsageError(f"--index {index} is {what}, which belongs to the stream; choose another path")


def is_default(file: str, index: str) -> bool:
    """Whether this is the index that belongs to FILE by its name."""
    return _absolute(index) in {_absolute(name + SUFFIX) for name in _names(file)}


def free_name(file: str, index: str) -> str | None:
    """A path for an index that is set aside; None if there are `COPIES` of them already."""
    for number in range(COPIES):
        aside = f"{index}{ASIDE}" + (f".{number}" if number else "")
        if not os.path.lexists(aside) and _companion(file, aside) is None:
            return aside
    return None


def _companion(file: str, path: str) -> str | None:
    """Which of FILE and its companions `path` means; None if none of them."""
    absolute = _absolute(path)
    for name in _names(file):
        stream = _absolute(name)
        if absolute.startswith(stream) and _COMPANION.fullmatch(absolute[len(stream) :]):
            return absolute
    try:
        status = os.stat(path)
    except OSError:
        return None
    for companion in _existing(file):
        try:
            if os.path.samestat(os.stat(companion), status):
                return f"the same file as {companion}"
        except OSError:
            continue  # it has just gone
    return None


def _names(file: str) -> tuple[str, ...]:
    """FILE's paths: if it is a link, its companions are beside the link, or beside its target."""
    return file, os.path.realpath(file)


def _existing(file: str) -> Iterator[str]:
    """FILE and its companions that exist."""
    for name in dict.fromkeys(map(_absolute, _names(file))):
        directory, base = os.path.split(name)
        try:
            entries = os.listdir(directory)
        except OSError:
            continue  # there is no such directory, or it can't be listed: the names above are all that is known
        for entry in entries:
            if entry.startswith(base) and _COMPANION.fullmatch(entry[len(base) :]):
                yield os.path.join(directory, entry)


def _absolute(path: str) -> str:
    """The path with all links in its directory followed; the last component is taken as it is."""
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name)
