"""Metrics of the process itself, by the names that Prometheus' client libraries gave them: process_…, python_….

Dashboards and alerts know these names. The figures are those of proc(5).
"""

from __future__ import annotations

import gc
import os
import platform
import resource
from typing import TYPE_CHECKING, Final

from tailsrv_runtime.metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

TICKS: Final = os.sysconf("SC_CLK_TCK")  # per second
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def process_metrics() -> Iterator[Metric]:
    """All of them. Without a readable /proc, those that come from it are left out."""
    major, minor, patchlevel = platform.python_version_tuple()
    version = {"implementation": platform.python_implementation(), "major": major, "minor": minor}
    labels = {**version, "patchlevel": patchlevel, "version": platform.python_version()}
    yield Metric("gauge", "python_info", "Python platform information.", 1, labels)
    yield from _garbage_collection()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Metric("gauge", "process_max_fds", "Maximum number of open file descriptors.", limit)
    try:
        yield from _proc()
    except OSError:
        return


def _proc() -> Iterator[Metric]:
    with open("/proc/self/stat", "rb") as stat:
        # The second field, the command's name in parentheses, may contain blanks: count from the third.
        fields = stat.read().rpartition(b")")[2].split()
    user, system, started, virtual, pages = (int(fields[number - 3]) for number in (14, 15, 22, 23, 24))
    with open("/proc/stat", "rb") as stat:
        booted = next(int(line.split()[1]) for line in stat if line.startswith(b"btime "))
    yield Metric("gauge", "process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual)
    yield Metric("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", pages * PAGE_BYTES)
    text = "Start time of the process since the Unix epoch in seconds."
    yield Metric("gauge", "process_start_time_seconds", text, booted + started / TICKS)
    text = "Total user and system CPU time spent in seconds."
    yield Metric("counter", "process_cpu_seconds", text, (user + system) / TICKS)
    yield Metric("gauge", "process_open_fds", "Number of open file descriptors.", len(os.listdir("/proc/self/fd")))


GARBAGE: Final = {
    "collected": ("python_gc_objects_collected", "Objects collected during garbage collection."),
    "uncollectable": ("python_gc_objects_uncollectable", "Uncollectable objects found during garbage collection."),
    "collections": ("python_gc_collections", "Number of times this generation was collected."),
}


def _garbage_collection() -> Iterator[Metric]:
    for generation, counts in enumerate(gc.get_stats()):
        for key, (name, text) in GARBAGE.items():
            yield Metric("counter", name, text, counts[key], {"generation": str(generation)})
