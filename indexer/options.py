"""What `tailsrv-index` is told to do."""

from __future__ import annotations

from typing import Final

from tailsrv_runtime.options import CommonOptions

DEFAULT_INTERVAL: Final = 4096
DEFAULT_MAX_MESSAGE_BYTES: Final = 64 << 20
SUFFIX: Final = ".index"


class Options(CommonOptions, frozen=True, kw_only=True):
    """The command line, checked."""

    file: str
    framing: str = "newline"
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    interval_bytes: int = DEFAULT_INTERVAL
    index: str
    """The path of the index."""
    rebuild: bool = False
    commit_mark: bool = True
    poll: float | None = None
    """Seconds; None: the kernel tells."""
