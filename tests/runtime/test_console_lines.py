"""What an operator sees of an event on a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from tailsrv_runtime.console_lines import COLUMNS, render

RAW, ACKED = "[::]:4322", "[::]:4323"


def shown(daemon: str, event: str, level: str = "info", *, colours: bool = False, **facts: Any) -> str:
    return render(daemon, {**facts, "event": event, "level": level, "timestamp": "21:30:43"}, colours=colours)


def test_readiness_is_a_sentence() -> None:
    line = shown("tailsrv-collate", "listening", addresses=[RAW, ACKED], raw=[RAW], acknowledged=[ACKED])
    assert line == "21:30:43 collate  listening on [::]:4322 (raw), [::]:4323 (acknowledged)"


def test_a_role_that_is_the_only_one_is_not_named() -> None:
    addresses = ["127.0.0.1:1", "[::1]:1"]
    assert (
        shown("tailsrv", "listening", addresses=addresses, broadcast=addresses)
        == "21:30:43 tailsrv  listening on 127.0.0.1:1, [::1]:1"
    )


@pytest.mark.parametrize(
    ("level", "facts", "line"),
    [
        ("info", {}, "21:30:43 index    stopped"),
        ("info", {"bytes": 7, "ratio": 1 / 3}, "21:30:43 index    stopped (bytes=7, ratio=0.333333)"),
        ("info", {"name": "two words", "none": ""}, '21:30:43 index    stopped (name="two words", none="")'),
        ("info", {"peers": ("a:1", "b:2")}, "21:30:43 index    stopped (peers=a:1,b:2)"),
        (
            "warning",
            {"file": "/x", "advice": "free some space", "error": "No space left on device"},
            "21:30:43 index    warning: stopped: No space left on device; free some space (file=/x)",
        ),
        ("error", {"error": "broken"}, "21:30:43 index    error: stopped: broken"),
    ],
)
def test_a_line(level: str, facts: dict[str, Any], line: str) -> None:
    assert shown("tailsrv-index", "stopped", level, **facts) == line


def test_a_long_line_continues_indented_and_fits() -> None:
    lines = shown("tailsrv", "failed", "error", error="word " * 60, path="/" + "x" * 200).split("\n")
    assert len(lines) > 3
    assert all(len(line) <= COLUMNS for line in lines if "/xxx" not in line)
    assert all(line.startswith(" " * 18) for line in lines[1:])
    assert " ".join(line[18:] for line in lines).endswith(f"(path=/{'x' * 200})")


def test_colours_change_nothing_but_colours() -> None:
    for level in ("debug", "info", "warning", "error"):
        coloured = shown("tailsrv", "disk full", level, colours=True, file="/x")
        assert "\x1b[" in coloured
        plain = shown("tailsrv", "disk full", level, file="/x")
        for code in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m"):
            coloured = coloured.replace(code, "")
        assert coloured == plain
