"""What a daemon counts, as plain values: kept cheaply while it works, turned into Prometheus' text when asked for.

Nothing here is imported from a metrics library, so that a daemon without --metrics does not pay for one, and the
values of several processes can be sent around and added up.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tailsrv_runtime.reactor import Reactor

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BYTES: Final = tuple(float(4**power) for power in range(3, 15))


class Measure(msgspec.Struct, frozen=True):
    """One value: a counter only grows while the process lives; a gauge is how things are now."""

    kind: Literal["counter", "gauge"]
    name: str
    """In Prometheus' style, its unit last: tailsrv_sent_bytes. Counters get _total from the exposition."""
    help: str
    value: float
    labels: dict[str, str] = {}


class Histogram(msgspec.Struct):
    """How often values fell below each of some bounds. Observing costs one bisection."""

    name: str
    help: str
    bounds: tuple[float, ...]
    """Upper bounds, ascending, in the unit of the name; values above the last one are counted too."""
    counts: list[int] = []
    """One for each bound, and one more for what lies above; not cumulative."""
    sum: float = 0.0
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Measured(Protocol):
    """What can be asked how it is."""

    def measures(self) -> Iterable[Measure | Histogram]:
        """A snapshot of everything it counts."""

    def unhealthy(self) -> str | None:
        """Why it can't do its work at the moment; None when it can."""


UNEXPECTED_ERRORS: Final = "tailsrv_unexpected_errors"


def unexpected_errors(reactor: Reactor) -> Measure:
    """How many unexpected errors were kept from ending the loop; see `Reactor.contain`."""
    text = "Unexpected errors, each of which closed one peer: bugs, reported in the log."
    return Measure("counter", UNEXPECTED_ERRORS, text, reactor.contained)
