"""Promises of the logging handler: every record is sent or counted, and logging costs no more time than it may."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tailsrv_client import Producer, TailsrvHandler
from tailsrv_client.blocking.log_records import as_json, as_text
from tests.support.streams import StreamUnderTest, unused_address
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def logger_of(handler: logging.Handler, name: str = "app") -> logging.Logger:
    logger = logging.Logger(name)  # noqa: LOG001 - one that no other test shares
    logger.addHandler(handler)
    return logger


def record(message: Any = "m", *arguments: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, arguments, None, extra=extra)


class Unprintable:
    """An object of an application that is broken."""

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("logged", "key", "value"),
    [
        pytest.param(record("name \udcff"), "message", "name \\udcff", id="lone surrogate"),
        pytest.param(record("m", path=["\udcff"]), "path", ["\\udcff"], id="lone surrogate in an extra"),
        pytest.param(record("m", **{"k\udcff": 1}), "k\\udcff", 1, id="lone surrogate in a key"),
        pytest.param(record("m", large=1 << 70), "large", 1 << 70, id="large integer"),
        pytest.param(
            record("m", odd=Unprintable()), "odd", "<Unprintable whose repr raises ZeroDivisionError>", id="repr"
        ),
        pytest.param(record("%d", "x"), "message", "%d", id="arguments that do not match"),
        pytest.param(record("%s", Unprintable()), "args", None, id="an argument whose str raises"),
        pytest.param(
            record(Unprintable()), "message", "<Unprintable whose str raises ZeroDivisionError>", id="message"
        ),
        pytest.param(record("m", pair={(1, 2): {3}}), "pair", {"(1, 2)": [3]}, id="keys that JSON has not"),
        pytest.param(record("m", nan=float("inf")), "nan", None, id="infinity"),
    ],
)
def test_every_record_is_a_json_object(logged: logging.LogRecord, key: str, value: object) -> None:
    found = json.loads(as_json(logged, 1 << 20))
    assert found["logger"] == "x"
    assert key in found
    assert found[key] == value or value is None


def test_a_cycle_is_rendered_as_far_as_it_makes_sense() -> None:
    assert len(as_json(record("m", cycle=CYCLE), 1 << 20)) < 1000
    assert json.loads(as_json(record("m", cycle=CYCLE), 1 << 20))["message"] == "m"


@pytest.mark.parametrize("limit", [300, 1000, 65_519, 1 << 20])
@pytest.mark.parametrize(
    "logged",
    [
        record("x" * (3 << 20)),
        record("\x01" * (3 << 20)),
        record("é" * (3 << 20), more="y" * (3 << 20), **{f"k{number}": "v" * 1000 for number in range(2000)}),
        record("m", deep=[["x" * 1000] * 2000]),
        record("m", odd=[Unprintable()] * 100_000),
    ],
    ids=["long", "escapes", "many extras", "a large container", "odd objects"],
)
def test_a_record_that_is_too_long_is_cut_and_says_so(logged: logging.LogRecord, limit: int) -> None:
    payload = as_json(logged, limit)
    assert len(payload) <= limit
    found = json.loads(payload)
    assert found["cut"] > limit
    assert found["message"]
    text = as_text(logged, logging.Formatter("%(message)s"), limit, escape=True)
    assert len(text) <= limit
    assert len(logged.getMessage()) < limit or b"[cut: " in text
    text.decode()


def test_text_that_can_not_be_formatted_says_what_was_logged() -> None:
    text = as_text(record("%d\n", "x"), logging.Formatter(), 1000, escape=True)
    assert text.startswith(b"INFO x: %d\\n ('x',) (TypeError: ")


def test_records_that_break_everything_arrive(stream: StreamUnderTest) -> None:
    handler = TailsrvHandler(stream.acks, "web-1", framing="newline", max_message_bytes=10_000)
    logger = logger_of(handler)
    logger.warning("name %s", "\udcff")
    logger.warning("m", extra={"cycle": CYCLE, "odd": Unprintable()})
    logger.warning("%d", "x")
    logger.warning("x" * 100_000)
    handler.close()
    found = [json.loads(line) for line in stream.content().splitlines()]
    assert [entry["message"][:7] for entry in found] == ["name \\u", "m", "%d", "xxxxxxx"]
    assert handler.dropped == 0


def test_only_the_librarys_own_records_are_left_out(stream: StreamUnderTest) -> None:
    handler = TailsrvHandler(stream.acks, formatter=logging.Formatter("%(name)s"))
    for name in ("tailsrv_client", "tailsrv_client.blocking.link", "tailsrv_clients"):
        logger_of(handler, name).warning("x")
    handler.close()
    assert stream.content() == b"tailsrv_clients\n"


def test_records_while_and_after_it_is_closed_are_sent_or_counted(stream: StreamUnderTest) -> None:
    """From four threads, at every moment of `close`; none raises."""
    handler = TailsrvHandler(stream.acks, formatter=logging.Formatter("%(message)s"), max_in_flight_bytes=1 << 20)
    logger, errors, counts = logger_of(handler), list[BaseException](), [0] * 4
    resume, closed = threading.Event(), threading.Event()

    def log(number: int) -> None:
        try:
            while not closed.is_set() or counts[number] % 10:
                logger.info("%d", number)
                counts[number] += 1
                resume.set()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the test's result
            errors.append(error)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert resume.wait(PATIENCE)
    handler.close()
    closed.set()
    for thread in threads:
        thread.join()
    assert errors == []
    arrived = [line for line in stream.content().splitlines() if line.isdigit()]
    # A producer that is closed while others send keeps its word only for what was acknowledged: the rest is told.
    assert len(arrived) + handler.dropped <= sum(counts)
    assert handler.dropped > 0
    before = handler.dropped
    logger.info("late")
    assert handler.dropped == before + 1


def test_a_signal_handler_that_logs_while_a_record_is_handed_on_loses_none(stream: StreamUnderTest) -> None:
    handler = TailsrvHandler(stream.acks, formatter=logging.Formatter("%(message)s"))
    logger, signals = logger_of(handler), 0

    def on_signal(*_: object) -> None:
        nonlocal signals
        signals += 1
        logger.info("signal")

    before = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        count = 0
        while signals < 200:
            logger.info("record")
            count += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    handler.flush(PATIENCE)
    handler.close()
    found = stream.content().splitlines()
    assert (found.count(b"record"), found.count(b"signal"), handler.dropped) == (count, signals, 0)


# --- with a spool


def test_with_a_spool_a_disk_that_hangs_costs_no_more_time_than_allowed(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to the spool hangs until all records are logged; then all arrive."""
    logged, write = threading.Event(), os.pwrite
    handler = TailsrvHandler(
        stream.acks, "a", spool=str(tmp_path / "spool"), formatter=logging.Formatter("%(message)s"), block_seconds=0.2
    )

    def slow(fd: int, data: bytes, offset: int) -> int:
        assert logged.wait(PATIENCE)
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    logger = logger_of(handler)
    begin = time.monotonic()
    for number in range(100):
        logger.info("line %d", number)
    assert time.monotonic() - begin < 5, "one waits as long as it may, the others don't"
    logged.set()
    handler.flush(PATIENCE)
    handler.close()
    assert stream.content() == b"".join(b"line %d\n" % number for number in range(100))
    assert handler.dropped == 0


def test_with_a_spool_what_was_logged_outlives_a_kill(stream: StreamUnderTest, tmp_path: Path) -> None:
    """The last record is logged right before the process ends without a word."""
    script = (
        "import logging, os, sys; from tailsrv_client import TailsrvHandler;"
        "logging.getLogger().addHandler(TailsrvHandler(sys.argv[1], 'a', spool=sys.argv[2], block_seconds=20));"
        "[logging.warning('line %d', n) for n in range(100)]; os.kill(os.getpid(), 9)"
    )
    path = str(tmp_path / "spool")
    subprocess.run([sys.executable, "-c", script, unused_address(), path], check=False, timeout=PATIENCE)
    with Producer(stream.acks, "a", spool=path):
        pass
    assert [json.loads(line)["message"] for line in stream.content().splitlines()] == [f"line {n}" for n in range(100)]


def test_with_a_spool_the_end_says_what_is_kept_and_where(
    stream: StreamUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "spool")
    handler = TailsrvHandler(
        unused_address(), "a", spool=path, close_seconds=1.0, formatter=logging.Formatter("%(message)s")
    )
    logger_of(handler).info("x")
    handler.close()
    assert f"2 more bytes kept in {path} for the next run" in capsys.readouterr().err
    handler = TailsrvHandler(stream.acks, "a", spool=path, close_seconds=PATIENCE)
    handler.close()
    assert stream.content() == b"x\n"
    assert capsys.readouterr().err == ""


def test_with_a_spool_a_full_disk_is_waited_for_then_counted(
    stream: StreamUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = TailsrvHandler(
        stream.acks,
        "a",
        spool=str(tmp_path / "spool"),
        formatter=logging.Formatter("%(message)s"),
        max_in_flight_bytes=1000,
        block_seconds=0.0,
        close_seconds=PATIENCE,
    )
    logger = logger_of(handler)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fail)
    for _ in range(20):
        logger.info("x" * 99)
    assert handler.dropped == 10
    monkeypatch.undo()
    handler.flush(PATIENCE)
    logger.info("last")
    handler.close()
    found = stream.content().splitlines()
    assert found == [b"x" * 99] * 10 + [b"10 log records were dropped: there was no room for them", b"last"]


@pytest.mark.parametrize("spooled", [False, True])
def test_a_forked_child_logs_on_its_own_connection(stream: StreamUnderTest, tmp_path: Path, *, spooled: bool) -> None:
    """Under no name: the parent's name and spool stay the parent's, and both lose nothing."""
    script = """
import logging, os, sys
from tailsrv_client import TailsrvHandler
handler = TailsrvHandler(sys.argv[1], "a", spool=sys.argv[2] or None, formatter=logging.Formatter("%(message)s"))
logging.getLogger().addHandler(handler)
logging.warning("before")
child = os.fork()
for number in range(100):
    logging.warning("%s %d", "parent" if child else "child", number)
if child:
    os.waitpid(child, 0)
else:
    handler.flush(20)
    os._exit(handler.dropped)
"""
    path = str(tmp_path / "spool") if spooled else ""
    ended = subprocess.run(
        [sys.executable, "-c", script, stream.acks, path], check=True, timeout=PATIENCE, capture_output=True
    )
    assert ended.stderr == b""
    wait_until(lambda: stream.content().count(b"\n") >= 201)
    found = stream.content().splitlines()
    assert len(found) == 201
    for who in (b"parent", b"child"):
        assert [line for line in found if line.startswith(who)] == [b"%s %d" % (who, number) for number in range(100)]
