"""A daemon's metrics as plain values: cheap to count while it works, turned into text when somebody asks.

Nothing is imported from a metrics library: a daemon without --metrics does not load one, and the values of several
processes can be sent around and added up. `exposition` writes them in Prometheus' text format.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailsrv_runtime.reactor import Reactor

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for durations."""

BYTES: Final = tuple(float(4**power) for power in range(3, 15))
"""Bounds for sizes: 64 bytes to 256 MiB."""


class Metric(msgspec.Struct, frozen=True):
    """One value: a counter, which only grows while the process lives, or a gauge, which also falls."""

    kind: Literal["counter", "gauge"]
    name: str
    """In Prometheus' style, with the unit last: tailsrv_sent_bytes. `exposition` appends _total to counters."""
    help: str
    value: float
    labels: dict[str, str] = {}


class Histogram(msgspec.Struct):
    """Counts of values by size. To observe one costs one bisection."""

    name: str
    help: str
    bounds: tuple[float, ...]
    """Upper bounds (inclusive), ascending, in the unit of the name. Values above the last one are counted as well."""
    counts: list[int] = []
    """One per bound and one for the values above all of them; not cumulative."""
    sum: float = 0.0
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Instrumented(Protocol):
    """An object that reports its metrics and its health."""

    def metrics(self) -> Iterable[Metric | Histogram]:
        """A snapshot of all its metrics."""

    def unhealthy(self) -> str | None:
        """Why it cannot serve at the moment; None if it can."""


UNEXPECTED_ERRORS: Final = "tailsrv_unexpected_errors"


def unexpected_errors(reactor: Reactor) -> Metric:
    """The number of errors that `Reactor.contain` kept from ending the loop."""
    text = "Unexpected errors (bugs), each of which closed one peer's connection; the log has the details."
    return Metric("counter", UNEXPECTED_ERRORS, text, reactor.contained)
