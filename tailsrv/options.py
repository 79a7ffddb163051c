"""The settings of one broadcaster."""

from __future__ import annotations

from tailsrv_runtime.options import CommonOptions


class Options(CommonOptions, frozen=True, kw_only=True):
    """What `tailsrv` is told on its command line."""

    file: str
    header_timeout: float = 10.0
    """Seconds that a client has for its header."""
    drain: float = 5.0
    """Seconds that clients have for what is due to them once the daemon is about to end."""
    linger_after_file_is_gone: bool = False
    commit_mark: bool = True
    """Whether `FILE.commit` says how far clients may read."""
    poll: float | None = None
    """Seconds between looks at the file, in addition to what the kernel tells; None for none."""
    replay_rate: int | None = None
    """Bytes per second for each client that is behind; None for as fast as it goes."""
    workers: int = 1
    """Processes that serve."""
