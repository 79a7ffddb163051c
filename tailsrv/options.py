"""The settings of one broadcaster."""

from __future__ import annotations

from tailsrv_runtime.options import CommonOptions


class Options(CommonOptions, frozen=True, kw_only=True):
    """The command line of `tailsrv`, checked."""

    file: str
    header_timeout: float = 10.0
    """Seconds that a client has to send its header."""
    drain: float = 5.0
    """Seconds that clients have to read the remaining bytes at shutdown."""
    linger_after_file_is_gone: bool = False
    """Whether a file that was moved or deleted is still served."""
    commit_mark: bool = True
    """Whether `FILE.commit` limits how far clients may read."""
    poll: float | None = None
    """Seconds between two looks at the file's size, in addition to inotify; None: inotify alone."""
    replay_rate: int | None = None
    """Bytes per second for each client that replays; None: unlimited."""
    workers: int = 1
    """Number of serving processes."""
