"""Why a query has no answer."""

from __future__ import annotations


class NotFoundError(Exception):
    """The message does not exist, or is not indexed yet."""


class CorruptIndexError(Exception):
    """The stream contradicts the index."""

    def __init__(self, why: str, position: int) -> None:
        """`position`: of the entry that is wrong, or whose successor is; -1 is the beginning of the stream."""
        super().__init__(why)
        self.position = position


class IndexFileError(OSError):
    """The kernel can't read or write a place of the index file. `filename` is its path."""
