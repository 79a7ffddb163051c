"""Promises of what users write and read: places, times, checkpoints, replies, formats, names of followed files."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailsrv_client.cat.formats import Template, render_json
from tailsrv_client.cat.lag import describe
from tailsrv_client.checkpoint import FileCheckpointStore
from tailsrv_client.errors import CheckpointError, IndexFailed
from tailsrv_client.protocol.bounds import (
    Byte,
    Count,
    FromEnd,
    Last,
    Number,
    Time,
    parse_start,
    parse_time,
    parse_until,
)
from tailsrv_client.protocol.lag import Lag
from tailsrv_client.protocol.messages import Message
from tailsrv_client.protocol.plan import find_time, make_plan
from tailsrv_client.protocol.requests import Entry
from tailsrv_client.protocol.requests import decode as decode_reply
from tailsrv_client.protocol.session import check_name
from tailsrv_client.put.followed_file import Identity
from tailsrv_client.put.resume_points import Names, base_name
from tailsrv_client.put.rotated_files import rotated_names
from tailsrv_formats.checkpoint import Checkpoint, InvalidCheckpointError, decode
from tailsrv_formats.errors import UsageError
from tailsrv_formats.position import Position

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

from tailsrv_client.protocol.plan import Plan


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("start", Byte(Position(0))),
        ("end", FromEnd(0)),
        ("1000", Byte(Position(1000))),
        (1000, Byte(Position(1000))),
        ("-5", FromEnd(5)),
        (-5, FromEnd(5)),
        ("message:7", Number(7)),
        ("last:3", Last(3)),
        ("time:0.5", Time(0.5)),
        ("time:1970-01-01T01:00:00+01:00", Time(0)),
        ("time:1970-01-01T00:00:01Z", Time(1)),
        (Position(5, "d"), Byte(Position(5, "d"))),
    ],
)
def test_a_start_means(text: str | int | Position, meaning: object) -> None:
    assert parse_start(text) == meaning


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (None, None),
        ("now", FromEnd(0)),
        ("12", Byte(Position(12))),
        (12, Byte(Position(12))),
        ("message:12", Number(12)),
        ("count:12", Count(12)),
        ("time:12", Time(12)),
    ],
)
def test_an_until_means(text: str | int | None, meaning: object) -> None:
    assert parse_until(text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "+1",
        "1_0",
        " 1",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "9" * 19 + "9",
        "message:",
        "message:-1",
        "byte:1",
        "time:",
        "time:x",
        "--1",
        "-",
    ],
)
def test_what_is_no_place_is_a_usage_error(text: str) -> None:
    for parse in (parse_start, parse_until):
        with pytest.raises(UsageError):
            parse(text)


def test_a_time_may_be_a_duration_before_now() -> None:
    for text, seconds in (("-1h", 3600), ("1h ago", 3600), ("-90", 90), ("500ms ago", 0.5), ("-7d", 7 * 86400)):
        assert parse_time(text, now=1e9) == 1e9 - seconds
    assert parse_time("2 h ago", now=1e9) == 1e9 - 7200
    assert parse_time("-999999d", now=1e9) == 0, "before the first message of any stream"
    before = time.time()
    start, until = parse_start("time:-1h"), parse_until("time:1h ago")
    assert isinstance(start, Time)
    assert isinstance(until, Time)
    assert before - 3600 <= start.seconds <= until.seconds <= time.time() - 3600
    for text in ("-", " ago", "ago", "-1y", "--1h", "-1h ago", "1h", "-x"):
        with pytest.raises(UsageError, match="is not a time"):
            parse_time(text)


def test_a_time_without_a_zone_is_utc() -> None:
    assert parse_time("2026-11-23T09:00:00") == parse_time("2026-11-23T09:00:00Z") == parse_time("1795424400")


def planned(questions: Generator[object, int | Entry, Plan], answers: dict[str, int | Entry]) -> Plan:
    """Answer by what is asked; an answer that is missing is the indexer's error."""
    try:
        question = next(questions)
        while True:
            key = question if isinstance(question, str) else json.dumps(question)
            question = questions.send(answers[key]) if key in answers else questions.throw(IndexFailed("beyond"))
    except StopIteration as stop:
        plan: Plan = stop.value
        return plan


def plan_of(start: str, until: str | None, answers: dict[str, int | Entry], **also: bool) -> Plan:
    return planned(
        make_plan(parse_start(start), None, parse_until(until), now=1000.0, numbered=also.get("numbered", False)),
        answers,
    )


def test_a_plan_asks_only_for_what_it_needs() -> None:
    plan = plan_of("start", "message:5", {})
    assert (plan.start, plan.number, plan.count, plan.stop) == (Position(0), 0, 5, None)
    assert plan_of("100", None, {}).start == Position(100)


def test_a_plan_is_made_of_what_the_servers_say() -> None:
    assert plan_of("-10", "now", {"end": 100}).start == Position(90)
    assert plan_of("-1000", "now", {"end": 100}).start == Position(0)
    last = plan_of("last:2", "message:9", {'{"last": 2}': Entry(7, 70)})
    assert (last.start.offset, last.number, last.count) == (70, 7, 2)
    numbered = plan_of(
        "70", None, {'{"count": true}': Entry(9, 90, count=9, end=90), '{"offset": 70}': Entry(7, 70)}, numbered=True
    )
    assert numbered.number == 7
    at_end = plan_of("90", None, {'{"count": true}': Entry(9, 90, count=9, end=90)}, numbered=True)
    assert at_end.number == 9


def test_a_time_that_is_past_is_a_place_and_one_to_come_is_asked_for_later() -> None:
    assert plan_of("start", "time:500", {'{"time": 500.0}': Entry(3, 33)}).stop == 33
    assert plan_of("start", "time:500", {"end": 44}).stop == 44, "nothing has arrived since"
    later = plan_of("start", "time:1500", {})
    assert (later.stop, later.until_time) == (None, 1500)
    questions = find_time(1500)
    assert next(questions) == {"time": 1500}


def test_a_message_that_is_not_there_is_the_indexers_error() -> None:
    with pytest.raises(IndexFailed):
        plan_of("message:99", None, {})


@given(st.integers(0, 1 << 62), st.text("0123456789abcdef", max_size=32), st.none() | st.integers(0, 1 << 62))
def test_a_checkpoint_reads_what_it_wrote(offset: int, digest: str, number: int | None) -> None:
    saved = Checkpoint(offset, digest, number)
    assert decode(saved.encode()) == saved


@given(st.binary(max_size=80))
def test_a_damaged_checkpoint_is_refused_not_guessed_at(content: bytes) -> None:
    try:
        saved = decode(content)
    except InvalidCheckpointError:
        return
    assert decode(saved.encode()) == saved


def test_a_checkpoint_is_replaced_whole_and_belongs_to_one_process(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    first = FileCheckpointStore(str(path))
    assert first.load() is None
    first.save(Checkpoint(1, "aa", 1))
    before = path.stat().st_ino
    first.save(Checkpoint(2, "bb", None))
    assert path.stat().st_ino != before, "written beside it and renamed: no reader and no crash sees half of it"
    assert path.read_bytes() == b'{"offset":2,"digest":"bb","number":null}\n'
    assert oct(path.stat().st_mode)[-3:] == "640"
    with pytest.raises(CheckpointError, match=str(path)):
        FileCheckpointStore(str(path))
    first.close()
    assert FileCheckpointStore(str(path)).load() == Checkpoint(2, "bb", None)


def test_replies_are_entries_errors_or_no_indexers() -> None:
    reply = (
        b'{"number":3,"offset":30,"length":10,"time":"2026-11-23T09:00:00.000000Z","count":9,"end":90,"exact":false}'
    )
    assert decode_reply(reply) == Entry(3, 30, 10, "2026-11-23T09:00:00.000000Z", 9, 90)
    with pytest.raises(IndexFailed, match="beyond the stream"):
        decode_reply(b'{"error":"beyond the stream"}')
    with pytest.raises(IndexFailed, match="no reply of an indexer"):
        decode_reply(b"HTTP/1.1 400 Bad Request\xff")


def test_a_format_prints_what_it_names() -> None:
    message = Message(b"pay\xff", 10, 15)
    assert Template(r"%n %o %e %S %t %s%%\n\t\0\\").render(message, 7, "T") == b"7 10 15 4 T pay\xff%\n\t\0\\"
    for bad in ("%x", "%", "\\q", "\\"):
        with pytest.raises(UsageError):
            Template(bad)


@given(st.binary(max_size=100))
def test_json_carries_any_bytes_on_one_line(payload: bytes) -> None:
    line = render_json(Message(payload, 1, 2 + len(payload)), None, None)
    assert line.count(b"\n") == 1
    said = json.loads(line)
    found = said["payload"].encode() if "payload" in said else base64.b64decode(said["payload_base64"])
    assert found == payload


def test_lag_is_bytes_messages_and_seconds() -> None:
    assert describe(Lag(100, 10, 2.54)) == "100 bytes, 10 messages, 2.5 s behind"
    assert describe(Lag(0, 0, 0.0)) == "0 bytes, 0 messages, 0.0 s behind"
    assert describe(Lag(100)) == "100 bytes behind"


@given(st.text(min_size=1, max_size=300), st.text(max_size=300), st.integers(0, 1 << 64), st.integers(0, 9))
def test_whatever_a_file_is_called_its_producer_has_a_name_that_may_be_used(
    path: str, host: str, inode: int, life: int
) -> None:
    path = path.replace("\0", "").encode("utf-8", "replace").decode()
    names = Names(base_name(f"/x/{path}", host), Identity(1, inode, 0xFFFFFFFF))
    found = [names.rest, names.head(0xFFFFFFFF), names.later(0xFFFFFFFF, life + 1)]
    assert [check_name(name) for name in found] == found
    assert len(set(found)) == 3


def test_files_of_one_name_in_two_folders_are_two_producers() -> None:
    assert base_name("/a/x.log", "h") != base_name("/b/x.log", "h")
    assert base_name("/a/x.log", "h").startswith("h:x.log-")


def test_what_rotation_leaves_is_found_oldest_first_and_nothing_else(tmp_path: Path) -> None:
    live = tmp_path / "app.log"
    for name in (
        "app.log",
        "app.log.1",
        "app.log.2",
        "app.log-20261123",
        "app.log.3.gz",
        "app.logger",
        "app.log.swp",
        "x",
    ):
        (tmp_path / name).touch()
    for name, seconds in (("app.log.1", 2000), ("app.log.2", 2000), ("app.log-20261123", 1000)):
        os.utime(tmp_path / name, (0, seconds))
    found = [os.path.basename(name) for name in rotated_names(str(live))]
    assert found == ["app.log-20261123", "app.log.2", "app.log.1"]


def test_the_library_imports_few_modules_and_none_that_it_does_not_need() -> None:
    """What an import costs is what it loads: so many modules take some 50 ms on a usual machine."""
    script = "import sys; before = set(sys.modules); import tailsrv_client; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"click", "structlog", "asyncio", "inotify_simple", "prometheus_client", "ssl", "http"} & set(loaded)
    ours = {name for name in loaded if name.partition(".")[0] in {"tailsrv", "tailsrv_client", "collator"}}
    assert len(set(loaded) - ours) < 110
    assert len(ours) < 60
