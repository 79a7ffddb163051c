"""Why there is no answer."""

from __future__ import annotations


class NotFoundError(Exception):
    """There is no answer: the message does not exist, or is not known yet."""


class CorruptIndexError(Exception):
    """The index and the stream contradict each other."""

    def __init__(self, why: str, position: int) -> None:
        """`position`: the entry that is wrong, or whose successor is; -1 is the beginning of the stream."""
        super().__init__(why)
        self.position = position


class IndexFileError(OSError):
    """The kernel can't read or write a place of the index. `filename` is the path of the index."""
