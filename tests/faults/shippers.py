"""Real log shippers on the raw lane, shipping on while the collator is killed and started again.

The raw lane answers nothing, so what was on its way when the collator died is the shipper's to lose, or to
send again later out of its queue: those numbers are shown, not judged. Judged is what the collator promises:
each line whole, none mixed with another's, and all that is shipped after the last start arrives.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.faults.checker import Findings
from tests.faults.daemon import Daemon, Subject
from tests.faults.fixtures import WITH_PARENT
from tests.faults.scenario import MissingFixtureError, Plan, Row, folder, need, timed
from tests.support.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LINE: Final = re.compile(rb"(\w+)-(\d{8}) (\d{3}) (x*)$")
_RSYSLOG: Final = """
global(workDirectory="{home}" maxMessageSize="8k")
module(load="imptcp")
template(name="line" type="string" string="%rawmsg%\\n")
input(type="imptcp" path="{home}/in" unlink="on" name="in")
action(type="omfwd" target="127.0.0.1" port="{port}" protocol="tcp" template="line"
       queue.type="LinkedList" queue.filename="spool" queue.size="2000" queue.maxDiskSpace="64m"
       queue.saveOnShutdown="on" action.resumeRetryCount="-1" action.resumeInterval="1"
       resendLastMSGOnReconnect="off")
"""
_SYSLOG_NG: Final = """
@version: {version}
options {{ time-reopen(1); keep-hostname(yes); stats-freq(0); }};
source in {{ unix-stream("{home}/in" flags(no-parse)); }};
destination out {{ network("127.0.0.1" port({port}) transport("tcp") template("${{MESSAGE}}\\n")
  disk-buffer(disk-buf-size(67108864) reliable(yes) dir("{home}"))); }};
log {{ source(in); destination(out); flags(flow-control); }};
"""


def shipped_line(shipper: str, number: int) -> bytes:
    """Give line `number` of a shipper: its length follows from its number and stands in it."""
    length = number * 37 % 900
    return b"%s-%08d %03d %s\n" % (shipper.encode(), number, length, b"x" * length)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*WITH_PARENT, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def rsyslog(home: Path, port: int) -> Iterator[Path]:
    """Run rsyslog with a disk-assisted queue; gives the socket to log to."""
    need("rsyslogd")
    (home / "rsyslog.conf").write_text(_RSYSLOG.format(home=home, port=port))
    with _process(["rsyslogd", "-n", "-f", str(home / "rsyslog.conf"), "-i", str(home / "pid")]):
        yield home / "in"


@contextlib.contextmanager
def syslog_ng(home: Path, port: int) -> Iterator[Path]:
    """Run syslog-ng with a reliable disk buffer from its unpacked packages; gives the socket to log to."""
    need("syslog-ng")
    said = subprocess.run(["syslog-ng", "--version"], check=True, capture_output=True, text=True).stdout
    version = ".".join(re.findall(r"\d+", said)[:2])
    (home / "syslog-ng.conf").write_text(_SYSLOG_NG.format(home=home, port=port, version=version))
    words = ["-F", "--no-caps", "-f", str(home / "syslog-ng.conf"), "--persist-file", str(home / "persist")]
    words += ["--pidfile", str(home / "pid"), "--control", str(home / "control")]
    with _process(["syslog-ng", *words]):
        yield home / "in"


class Writer(threading.Thread):
    """Logs lines to a shipper's socket, `rate` a second, until it is told to end."""

    def __init__(self, shipper: str, path: Path, rate: float) -> None:
        super().__init__(daemon=True)
        self.shipper = shipper
        self.count = 0
        self._path = path
        self._period = 20 / rate
        self._end = threading.Event()

    def run(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._path))
            while not self._end.wait(self._period):
                lines = [shipped_line(self.shipper, self.count + number) for number in range(20)]
                sock.sendall(b"".join(lines))
                self.count += 20

    def end(self) -> None:
        """Stop, behind a whole line."""
        self._end.set()
        self.join()


def _present(file: Path, line: bytes) -> bool:
    return file.exists() and line in file.read_bytes()[-(1 << 20) :]


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.05)
    return True


def judge(file: Path, shipper: str, count: int, findings: Findings) -> tuple[int, int]:
    """Read the file's lines; gives how many of the shipper's never arrived, and how many stand again."""
    seen: set[int] = set()
    again = 0
    for line in file.read_bytes().splitlines():
        match = _LINE.search(line)
        if match is None or match[1] != shipper.encode() or int(match[3]) != len(match[4]):
            findings.torn += 1
            findings.note(f"{line[:80]!r} ({len(line)} bytes) is no line that {shipper} has shipped")
            continue
        again += int(match[2]) in seen
        seen.add(int(match[2]))
    return count - len(seen), again


def ship(
    subject: Subject,
    shipper: str,
    run: Callable[[Path, int], contextlib.AbstractContextManager[Path]],
    *,
    kills: int,
) -> tuple[Findings, str]:
    """Ship through `kills` deaths of the collator; the findings, and what the shipper lost on the way."""
    findings = Findings()
    with folder() as home, contextlib.ExitStack() as stack:
        port = free_port()
        file = home / "stream.log"
        argv = subject.argv(file, framing="newline", sync="always", raw=True)
        argv[argv.index("127.0.0.1:0")] = f"127.0.0.1:{port}"
        daemon = stack.enter_context(Daemon(argv, home / "log"))
        daemon.wait_ready()
        place = home / shipper
        place.mkdir()
        source = stack.enter_context(run(place, port))
        if not _wait(source.exists, 15):
            raise MissingFixtureError(f"{shipper} does not start")
        writer = Writer(shipper, source, 4_000)
        writer.start()
        for number in range(kills):
            if not _wait(lambda: file.exists() and file.stat().st_size > 0, 20):
                findings.other += 1
                findings.note(f"nothing of {shipper} arrives")
                break
            threading.Event().wait(0.3)
            daemon.kill()
            threading.Event().wait(0.2 * (number % 3))
            daemon = stack.enter_context(Daemon(argv, home / "log"))
            daemon.wait_ready()
            held = file.stat().st_size
            if not _wait(lambda size=held: file.stat().st_size > size, 20):  # type: ignore[misc]  # its default binds
                findings.other += 1
                findings.note(f"{shipper} does not come back after kill {number + 1}")
        writer.end()
        last = shipped_line(shipper, writer.count - 1)
        if not _wait(lambda: _present(file, last), 30):
            findings.other += 1
            findings.note(f"the last line of {shipper} has not arrived")
        if daemon.stop() != 0:
            findings.other += 1
            findings.note(f"SIGTERM: {daemon.said()[-300:]}")
        lost, again = judge(file, shipper, writer.count, findings)
    return findings, f"of {writer.count} lines {lost} lost and {again} sent again by the shipper"


@contextlib.contextmanager
def netcat(home: Path, port: int) -> Iterator[Path]:
    """Run nc in a loop, each time with the lines that come next; gives the socket to log to."""
    need("nc")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "in"))
    listener.listen()
    ended = threading.Event()

    def pump() -> None:
        sock, _ = listener.accept()
        held = b""
        with sock:
            while data := sock.recv(1 << 16):
                held += data
                end = held.rfind(b"\n") + 1
                while held and end and not ended.is_set():
                    done = subprocess.run(
                        ["nc", "-N", "127.0.0.1", str(port)], input=held[:end], capture_output=True, check=False
                    )
                    if done.returncode == 0:
                        held = held[end:]
                        break
                    ended.wait(0.05)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield home / "in"
    finally:
        ended.set()
        listener.close()
        thread.join(5)


def _row(plan: Plan, name: str, run: Callable[[Path, int], contextlib.AbstractContextManager[Path]]) -> Row:
    kills = plan.times(1, 10)
    row = Row("shipper", f"{name}, raw lane", runs=kills)
    with timed(row):
        found, row.remark = ship(plan.subject, name, run, kills=kills)
    row.findings.add(found)
    return row


def ship_by_rsyslog(plan: Plan) -> Iterator[Row]:
    """Let rsyslog ship while the collator is killed and started."""
    yield _row(plan, "rsyslog", rsyslog)


def ship_by_syslog_ng(plan: Plan) -> Iterator[Row]:
    """Let syslog-ng ship while the collator is killed and started."""
    yield _row(plan, "syslogng", syslog_ng)


def ship_by_netcat(plan: Plan) -> Iterator[Row]:
    """Let nc ship while the collator is killed and started."""
    yield _row(plan, "nc", netcat)
