"""The process's metrics have the names, types, labels and values that Prometheus' own client gives them."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from tailsrv_runtime.exposition import expose
from tailsrv_runtime.process_metrics import process_metrics

if TYPE_CHECKING:
    import pytest


def test_they_are_those_of_prometheus_own_client() -> None:
    registry = CollectorRegistry()
    PlatformCollector(registry)
    ProcessCollector(registry=registry)
    GCCollector(registry)
    theirs = {family.name: family for family in registry.collect()}
    ours = {family.name: family for family in text_string_to_metric_families(expose(process_metrics()).decode())}
    assert {name: family.type for name, family in ours.items()} == {
        name: family.type for name, family in theirs.items()
    }
    for name, family in ours.items():
        assert [(sample.name, sample.labels) for sample in family.samples] == [
            (sample.name, sample.labels) for sample in theirs[name].samples
        ]
    for name in ("process_start_time_seconds", "process_max_fds", "process_resident_memory_bytes"):
        ratio = ours[name].samples[0].value / theirs[name].samples[0].value
        assert 0.9 < ratio < 1.1


def test_without_proc_the_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(builtins, "open", fail)
    names = {metric.name for metric in process_metrics()}
    assert {"python_info", "process_max_fds", "python_gc_collections"} <= names
    assert "process_cpu_seconds" not in names
