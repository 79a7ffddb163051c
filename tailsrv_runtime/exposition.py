"""Prometheus' text format (version 0.0.4) from plain metrics.

    # HELP tailsrv_sent_bytes_total Bytes sent to clients.
    # TYPE tailsrv_sent_bytes_total counter
    tailsrv_sent_bytes_total 1048576.0

Source: "Exposition formats" of Prometheus' documentation. Pure, but for the type of its input.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from tailsrv_runtime.metrics import Histogram, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def expose(metrics: Iterable[Metric | Histogram]) -> bytes:
    """The text for `metrics`. Those with the same name are one family, whose help and type are those of the first."""
    families: dict[str, list[str]] = {}
    for metric in metrics:
        name = _name(metric)
        lines = families.get(name)
        if lines is None:
            lines = families[name] = [f"# HELP {name} {_escape(metric.help)}", f"# TYPE {name} {_kind(metric)}"]
        lines.extend(_samples(name, metric))
    text = "".join(f"{line}\n" for lines in families.values() for line in lines)
    return text.encode(errors="backslashreplace")


def _name(metric: Metric | Histogram) -> str:
    return f"{metric.name}_total" if _kind(metric) == "counter" else metric.name


def _kind(metric: Metric | Histogram) -> str:
    return "histogram" if isinstance(metric, Histogram) else metric.kind


def _samples(name: str, metric: Metric | Histogram) -> Iterator[str]:
    if isinstance(metric, Metric):
        yield f"{name}{_labels(metric.labels)} {float(metric.value)!r}"
        return
    bounds = [*(repr(bound) for bound in metric.bounds), "+Inf"]
    count = 0
    for bound, count in zip(bounds, itertools.accumulate(metric.counts), strict=True):
        yield f"{name}_bucket{_labels({**metric.labels, 'le': bound})} {float(count)!r}"
    yield f"{name}_count{_labels(metric.labels)} {float(count)!r}"
    yield f"{name}_sum{_labels(metric.labels)} {metric.sum!r}"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in labels.items()) + "}"


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text
