"""What /proc says of a process."""

from __future__ import annotations

import contextlib
import os


def is_running(pid: int) -> bool:
    """Whether a process has not ended. A zombie has: not every first process of a container reaps orphans."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The ids of the processes that the first thread of a process has started, in this order."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used, user and system."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> list[str]:
    """The open descriptors of a process, by path or kind ("socket:[…]"); none if it has ended."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since
                found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found
