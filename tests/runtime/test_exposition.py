"""The text of /metrics, byte by byte, and as Prometheus' own client reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tailsrv_runtime.exposition import expose
from tailsrv_runtime.metrics import Histogram, Metric


def test_counters_and_gauges() -> None:
    metrics = [
        Metric("counter", "tailsrv_sent_bytes", "Bytes sent.", 12_345_678_901),
        Metric("gauge", "tailsrv_clients", "Clients.", 2, {"state": "live"}),
        Metric("counter", "tailsrv_errors", "Errors.", 0),
        Metric("gauge", "tailsrv_clients", "Not used: the family has a help already.", 3, {"state": "replay"}),
    ]
    assert expose(metrics).decode().splitlines() == [
        "# HELP tailsrv_sent_bytes_total Bytes sent.",
        "# TYPE tailsrv_sent_bytes_total counter",
        "tailsrv_sent_bytes_total 12345678901.0",
        "# HELP tailsrv_clients Clients.",
        "# TYPE tailsrv_clients gauge",
        'tailsrv_clients{state="live"} 2.0',
        'tailsrv_clients{state="replay"} 3.0',
        "# HELP tailsrv_errors_total Errors.",
        "# TYPE tailsrv_errors_total counter",
        "tailsrv_errors_total 0.0",
    ]


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram("x_seconds", "Durations.", (0.001, 0.5), labels={"kind": "a"})
    for value in (0.0001, 0.001, 0.25, 7.0):
        histogram.observe(value)
    assert expose([histogram]).decode().splitlines() == [
        "# HELP x_seconds Durations.",
        "# TYPE x_seconds histogram",
        'x_seconds_bucket{kind="a",le="0.001"} 2.0',
        'x_seconds_bucket{kind="a",le="0.5"} 3.0',
        'x_seconds_bucket{kind="a",le="+Inf"} 4.0',
        'x_seconds_count{kind="a"} 4.0',
        f'x_seconds_sum{{kind="a"}} {histogram.sum!r}',
    ]


def test_what_could_break_a_line_is_escaped() -> None:
    value = 'a "quoted"\n\\ value'
    text = expose([Metric("gauge", "x", 'help\nwith \\ and "', 1, {"label": value})]).decode()
    assert text.count("\n") == 3
    (family,) = text_string_to_metric_families(text)
    assert family.documentation == 'help\nwith \\ and "'
    assert family.samples[0].labels == {"label": value}


def test_prometheus_reads_the_same_values() -> None:
    histogram = Histogram("x_bytes", "Sizes.", (64.0, 256.0))
    histogram.observe(100)
    values = [1e21, 1e-9, float("inf"), 0.1, 1 << 53]
    metrics = [Metric("gauge", "x", "Values.", value, {"n": str(n)}) for n, value in enumerate(values)]
    families = {
        family.name: family for family in text_string_to_metric_families(expose([*metrics, histogram]).decode())
    }
    assert [sample.value for sample in families["x"].samples] == values
    assert families["x_bytes"].type == "histogram"
    assert {sample.name: sample.value for sample in families["x_bytes"].samples if "le" not in sample.labels} == {
        "x_bytes_count": 1,
        "x_bytes_sum": 100,
    }


def test_nothing_is_no_text() -> None:
    assert expose([]) == b""
