"""The messages between the supervisor and its workers.

Each worker has a pair of Unix sockets with the supervisor (SOCK_SEQPACKET: one message is one packet). The supervisor
sends commands, and the worker sends reports. The end of the channel tells either side that the other process has died.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from tailsrv_runtime.metrics import Metric  # noqa: TC001 - msgspec reads the annotation

MESSAGE_BYTES: Final = 1 << 16
"""Room for the longest message."""


class Command(enum.Enum):
    """A message of the supervisor; the value is the packet."""

    REPORT_METRICS = b"report metrics"
    LOG_CLIENTS = b"log clients"
    STOP = b"stop"
    """Begin the drain, as after SIGTERM."""
    END = b"end"
    """End without a drain."""


class Event(enum.Enum):
    """The kinds of reports."""

    READY = "ready"
    """The worker serves."""
    FILE_GONE = "file gone"
    """The file was moved or deleted; the worker has begun its drain."""
    METRICS = "metrics"
    """The answer to REPORT_METRICS; `text` says why the worker is unhealthy."""
    FAILED = "failed"
    """The worker ends because of the error in `text`."""
    SHORTAGE = "shortage"
    """The worker ends because it is out of descriptors or memory; `text` has the error."""


class WorkerReport(msgspec.Struct, frozen=True):
    """A message of a worker."""

    event: Event
    text: str | None = None
    metrics: list[Metric] = []


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(WorkerReport).decode
