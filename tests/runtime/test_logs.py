"""Both forms of the log, console and JSON, keep the same promises: every test runs over both."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.outputs import output
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = """
import json, sys
from tailsrv_runtime.logs import configure
log = configure("tailsrv-collate", sys.argv[2], sys.argv[1])
for method, event, facts in json.load(sys.stdin):
    getattr(log, method)(event, **facts)
"""

FLOOD = """
import select, sys
from tailsrv_runtime.logs import configure
log = configure("tailsrv-collate", "info", sys.argv[1])
for _ in range(5000):
    log.info("stopped", error="x" * 200)
print("flooded", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    log.info("stopped")
"""

Event = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """One event as a reader of the log finds it."""

    daemon: str
    level: str
    event: str
    text: str
    """All of it, so that a test can look for a fact."""


def read_json(text: str) -> list[Record]:
    records = []
    for line in text.splitlines():
        found = json.loads(line)
        values = [f"{key}={value}" for key, value in found.items()]
        records.append(Record(found["daemon"], found["level"], found["event"], " ".join(values)))
    return records


def read_console(text: str) -> list[Record]:
    records = []
    for record in re.sub(r"\n {18}", " ", text).splitlines():
        found = re.fullmatch(r"\d\d:\d\d:\d\d (\w+) +(?:(warning|error): )?([^:;(]+?)(?:[:;(].*| \(.*)?", record)
        assert found is not None, record
        records.append(Record(f"tailsrv-{found[1]}", found[2] or "info", found[3].strip(), record))
    return records


READERS: dict[str, Callable[[str], list[Record]]] = {"console": read_console, "json": read_json}


@pytest.fixture(params=READERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(form: str, events: list[Event], *, level: str = "info") -> str:
    """Standard error of a process that logs these events."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, form, level],
        input=json.dumps(events).encode(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    return ended.stderr.decode()


@contextlib.contextmanager
def started(command: list[str], stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes to its input and from its output, which is killed if the test fails."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def test_an_event_is_one_record_that_names_the_daemon_the_level_and_every_fact(form: str) -> None:
    facts = {"error": "No space left on device", "advice": "free some disk space", "file": "/srv/log", "bytes": 7}
    said = write(form, [("info", "stopped", {}), ("warning", "disk full", facts), ("error", "commit failed", {})])
    records = READERS[form](said)
    assert [(each.daemon, each.level, each.event) for each in records] == [
        ("tailsrv-collate", "info", "stopped"),
        ("tailsrv-collate", "warning", "disk full"),
        ("tailsrv-collate", "error", "commit failed"),
    ]
    for fact in ("No space left on device", "free some disk space", "file=/srv/log", "bytes=7"):
        assert fact in records[1].text


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_events_below_the_level_are_not_written(form: str, level: str, written: int) -> None:
    events: list[Event] = [(each, "stopped", {}) for each in ("debug", "info", "warning", "error")]
    assert len(READERS[form](write(form, events, level=level))) == written


HOSTILE = ("a\nb", "\r\x1b[2J", "\0\x7f\x9b", "\u2028\u2029\x85", "\udcff\udc80", "é")


def test_no_fact_divides_a_record_or_reaches_a_terminal_unescaped(form: str) -> None:
    facts: list[Any] = [*HOSTILE, *([each, each] for each in HOSTILE)]
    said = write(form, [("info", "peer refused", {"peer": each}) for each in facts])
    assert all(character.isprintable() for character in said.replace("\n", ""))
    assert [each.event for each in READERS[form](said)] == ["peer refused"] * len(facts)


def test_a_long_fact_is_written_whole(form: str) -> None:
    error = " ".join(f"word{number}" for number in range(200))
    (record,) = READERS[form](write(form, [("error", "commit failed", {"error": error})]))
    assert error in record.text


def test_lines_that_a_full_pipe_does_not_take_are_counted_in_the_same_form(form: str) -> None:
    """The process logs until its standard input ends; its pipe is read only after it has logged far too much."""
    command = [sys.executable, "-c", FLOOD, form]
    with output("full pipe") as error, started(command, error.fd) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"flooded\n"
        records = READERS[form](error.read(until=b"log lines dropped").decode())
        process.stdin.close()
    reports = [each for each in records if each.event != "stopped"]
    assert {(each.event, each.level) for each in reports} == {("log lines dropped", "warning")}
    assert re.search(r"count=[1-9]", reports[0].text)
    assert len(records) > len(reports)
