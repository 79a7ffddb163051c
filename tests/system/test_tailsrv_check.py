"""`tailsrv-check` ends soon, with findings and never with a traceback, whatever FILE and its companions are."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compose import inspection
from compose.inspection import check
from compose.report import Report
from tailsrv_formats.framing import make_framing
from tailsrv_formats.index_file import Header
from tailsrv_formats.journal import Header as JournalHeader
from tailsrv_formats.journal import Record, encode_named, encode_record, seed
from tests.support.collators import Producer, collate, raw, wait_committed
from tests.support.daemons import Daemon
from tests.support.outputs import output
from tests.support.processes import open_files
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

COMPANIONS = (".commit", ".producers", ".index", ".rescued-20260101T000000Z", ".base")
COMMAND = (sys.executable, "-m", "compose.check")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream with everything beside it, after a clean stop."""
    path = tmp_path_factory.mktemp("original") / "stream"
    with collate(path) as collator:
        raw(collator, b"raw line\n" * 1000)
        wait_committed(path, 9000)
        producer = Producer(collator, "ada")
        assert producer.told() == (0, 0)
        producer.send(b"line\n")
        producer.told()
        with Daemon("tailsrv-index", path, "--listen", "127.0.0.1:0") as indexer:
            wait_until(lambda: path.with_name("stream.index").stat().st_size > 64, "the index has entries")
            assert indexer.stop() == 0
        assert collator.stop() == 0
    path.with_name("stream.rescued-20260101T000000Z").write_bytes(b"rescued")
    assert not check(str(path)).findings
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for each in original.parent.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    return tmp_path / "stream"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _node(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 42)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(100_000))


def _unreadable(path: Path) -> None:
    path.write_bytes(b"secret")
    path.chmod(0)


STATES: dict[str, Callable[[Path], Any]] = {
    "directory": lambda path: path.mkdir(),
    "named pipe": _fifo,
    "socket": _socket,
    "dangling link": _dangling,
    "loop": _loop,
    "link to a device": _device,
    "device": _node,
    "empty": lambda path: path.touch(),
    "huge": _huge,
    "garbage": _garbage,
    "unreadable": _unreadable,
}
KINDS = {name: pytest.param(name, marks=pytest.mark.needs("device") if name == "device" else ()) for name in STATES}


def _run(path: Path | bytes, *options: str, **settings: Any) -> tuple[int, str]:
    """Exit code and output; nothing may come on standard error."""
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    ended = subprocess.run(
        [*prefix, *COMMAND, *options, path], check=False, capture_output=True, timeout=PATIENCE, **settings
    )
    assert ended.stderr == b""
    return ended.returncode, ended.stdout.decode()


@pytest.mark.parametrize("state", KINDS.values())
@pytest.mark.parametrize("suffix", COMPANIONS)
def test_a_companion_that_is_no_regular_file_is_a_finding(path: Path, suffix: str, state: str) -> None:
    companion = path.with_name(f"stream{suffix}")
    companion.unlink(missing_ok=True)
    STATES[state](companion)
    code, said = _run(path)
    if suffix == ".base" or (suffix, state) == (".index", "empty") or (companion.is_file() and ".rescued" in suffix):
        assert (code, said.splitlines()[-1]) == (0, "in order")
    else:
        assert code == 1
        assert any(line.startswith(f"finding: {companion}: ") for line in said.splitlines()), said


@pytest.mark.parametrize("state", [kind for name, kind in KINDS.items() if name not in {"empty", "huge", "garbage"}])
def test_a_stream_that_is_no_regular_file_is_a_finding(path: Path, state: str) -> None:
    path.unlink()
    STATES[state](path)
    code, said = _run(path)
    assert code == 1
    assert said.startswith(f"finding: {path}: cannot be read: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("framing", ["newline", "u32be", "varint"])
def test_a_stream_of_garbage_or_of_nothing_ends_soon(tmp_path: Path, framing: str) -> None:
    path = tmp_path / "stream"
    path.touch()
    assert _run(path, "--framing", framing)[0] == 0
    path.write_bytes(b"\xff" * 100_000)
    assert _run(path, "--framing", framing)[0] == 1
    os.truncate(path, 1 << 42)
    assert _run(path, "--framing", framing)[0] == 1


@pytest.mark.parametrize("suffix", COMPANIONS[:3])
def test_a_truncated_mark_or_journal_is_a_finding_and_a_truncated_index_is_read(path: Path, suffix: str) -> None:
    companion = path.with_name(f"stream{suffix}")
    content = companion.read_bytes().rstrip(b"\0")
    for size in range(0, len(content), max(1, len(content) // 100)):
        companion.write_bytes(content[:size])
        report = check(str(path))
        assert report.facts
        assert report.findings or suffix == ".index", size  # the beginning of an index is an index


def test_records_and_headers_that_check_out_and_make_no_sense_are_findings(path: Path) -> None:
    size = path.stat().st_size
    header = JournalHeader(b"i" * 16, b"", "newline", "always").encode()
    journal = path.with_name("stream.producers")
    record = Record(0, size, size, 0)
    for numbered, named in (
        ([(77).to_bytes(4, "little") + bytes(16)], []),
        ([], [encode_named(b"a", 1, 1), encode_named(b"a", 1 << 63, 1 << 63)]),
        ([], [b"\xff"]),
    ):
        journal.write_bytes(header + encode_record(seed(header), record, numbered, named))
        assert check(str(path)).findings
    for framing in ("morse", "\0\xff"[:1]):
        odd = JournalHeader(b"i" * 16, b"", framing, "always").encode()
        journal.write_bytes(odd + encode_record(seed(odd), record, [], []))
        assert check(str(path)).findings
    journal.unlink()
    companion = path.with_name("stream.index")
    for made in (Header("newline", 1, 0, (1 << 32) - 1, 0), Header("newline", (1 << 64) - 1, 0), Header("u32be", 1, 0)):
        companion.write_bytes(made.encode() + b"\xff" * 2400)
        assert check(str(path)).findings


def test_a_read_that_fails_anywhere_is_a_finding(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Nth read says EIO, for every N there is."""
    failed = 0
    for number in range(1, 1000):
        left = number

        def fail(call: Callable[..., Any], *arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, "Input/output error")
            return call(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", functools.partial(fail, os.pread))
            patch.setattr(os, "preadv", functools.partial(fail, os.preadv))
            findings = "\n".join(check(str(path)).findings)
        if left > 0:
            break
        failed += 1
        assert "Input/output error" in findings
    assert failed > 5


def test_a_stream_that_is_cut_while_it_is_read_ends_the_walk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def cut(*arguments: Any) -> int:
        os.truncate(path, 0)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", cut)
    report = check(str(path))
    assert any("was truncated while it was read" in finding for finding in report.findings)
    assert report.writer_active
    assert "a writer is active" in report.facts[0]


def test_a_stream_that_changes_while_it_is_read_ends_no_check(path: Path) -> None:
    """A thread writes, cuts and replaces everything meanwhile."""
    ended = threading.Event()
    contents = {each: each.read_bytes() for each in path.parent.iterdir()}

    def disturb() -> None:
        while not ended.is_set():
            for each, content in contents.items():
                each.write_bytes(content[: len(content) // 2])
                each.unlink()
                each.write_bytes(content[::-1])
                each.write_bytes(content)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        reports = [check(str(path)) for _ in range(100)]
    finally:
        ended.set()
        thread.join()
    assert all(report.facts or report.findings for report in reports)
    assert check(str(path)).findings == []


def test_a_check_takes_no_lock_and_reports_an_active_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collator that starts at that moment would end: "has a writer already"."""
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", None)
        assert not check(str(path)).writer_active
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert check(str(path)).writer_active


def test_names_forge_no_lines_and_need_be_no_text(path: Path) -> None:
    folder = path.parent
    for name in (b"evil\nin order", b"evil\x1b[2J", b"evil\xff", "evil\u202e".encode()):
        evil = os.path.join(os.fsencode(folder), name)
        with open(evil, "wb") as file:
            file.write(b"unfinished")
        os.mkdir(evil + b".rescued-\n1")
        code, said = _run(evil)
        assert code == 1
        assert said.isascii()
        for line in said.splitlines():
            assert line.startswith(("finding: ", str(folder)))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_are_written_in_any_locale(path: Path, locale: str) -> None:
    file = path.with_name("bücher")
    file.write_bytes(b"line\n")
    code, said = _run(file, env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert code == 0
    assert "cher" in said


def test_an_output_that_nobody_reads_changes_no_exit_code(path: Path) -> None:
    with output("no reader") as out:
        for code in (0, 1):
            ended = subprocess.run(
                [*COMMAND, path], check=False, stdout=out.fd, stderr=subprocess.PIPE, timeout=PATIENCE
            )
            assert (ended.returncode, ended.stderr) == (code, b"")
            with path.open("ab") as file:
                file.write(b"more")


def test_ctrl_c_ends_it_without_a_traceback(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)  # empty messages: more than can be visited
    path.with_name("stream.commit").unlink()
    path.with_name("stream.producers").unlink()
    with subprocess.Popen([*COMMAND, "--framing", "u32be", path], stderr=subprocess.PIPE) as process:
        wait_until(lambda: str(path) in open_files(process.pid), "it reads")
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        assert process.returncode == 130


def test_a_journal_that_is_too_long_is_not_read_into_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LONGEST_JOURNAL", 100)
    assert any("not checked" in finding for finding in check(str(path)).findings)


def test_a_message_that_is_longer_than_a_block_is_no_reason_to_read_on_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    frames = make_framing("u32be", 1 << 26)
    path.write_bytes(frames.wrap(b"x" * (9 << 20)))
    assert not check(str(path), framing="u32be").findings


def test_json_has_the_fields_that_are_documented(path: Path) -> None:
    """A contract: fields are added, and neither renamed nor removed."""
    code, said = _run(path, "--json")
    assert code == 0
    assert said.count("\n") == 1
    assert json.loads(said) == {
        "ok": True,
        "file": str(path),
        "framing": "newline",
        "bytes": 9005,
        "committed": 9005,
        "messages": 1001,
        "journal": True,
        "writer_active": False,
        "producers": [{"name": "ada", "acked": 5, "at": 9005}],
        "rescued": [{"path": f"{path}.rescued-20260101T000000Z", "bytes": 7}],
        "findings": [],
    }
    with path.open("ab") as file:
        file.write(b"more")
    code, said = _run(path, "--json")
    report = json.loads(said)
    assert (code, report["ok"], report["bytes"], report["committed"]) == (1, False, 9009, 9005)
    assert report["findings"] == [f"{path}: 4 bytes from byte 9005 on are not committed"]


def test_json_of_what_is_no_stream(path: Path) -> None:
    code, said = _run(os.fsencode(path.parent) + b"/none\xff", "--json")
    report = json.loads(said)
    assert (code, report["bytes"], len(report["findings"])) == (1, None, 1)
    assert os.fsencode(report["file"]).endswith(b"/none\xff")


def test_the_documented_fields_are_those_of_the_report() -> None:
    page = (Path(__file__).parents[2] / "docs/tailsrv-check.md").read_text()
    fields = re.findall(r"^\| `(\w+)` \|", page.partition("## JSON")[2], re.MULTILINE)
    assert fields == ["ok", *Report.__struct_fields__]
