"""The settings of one indexer."""

from __future__ import annotations

from typing import Final

from tailsrv_runtime.options import CommonOptions

DEFAULT_INTERVAL: Final = 4096
DEFAULT_MAX_MESSAGE_BYTES: Final = 64 << 20
SUFFIX: Final = ".index"


class Options(CommonOptions, frozen=True, kw_only=True):
    """The command line of `tailsrv-index`, checked."""

    file: str
    framing: str = "newline"
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """The largest valid message; at a longer one indexing ends."""
    interval_bytes: int = DEFAULT_INTERVAL
    """The least number of bytes of the stream between two index entries."""
    index: str
    """The path of the index."""
    rebuild: bool = False
    """Whether the index is built from scratch."""
    commit_mark: bool = True
    """Whether `FILE.commit` limits what is indexed."""
    poll: float | None = None
    """Seconds between two looks at the file's size, in addition to inotify; None: inotify alone."""
