"""The spool at every system call: killed there, or told that the disk is full or broken. Nothing accepted is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tailsrv_client.spool import Spool
from tailsrv_formats.framing import make_framing
from tests.support.waits import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs("strace")

PROGRAM = """
import os, sys
from tailsrv_formats.framing import make_framing
from tailsrv_client import spool as module
module.COMPACT_BYTES = 60

def tell(what, number):
    os.write(1, b"%s %d\\n" % (what, number))

spool = module.Spool(sys.argv[1], "n", make_framing("newline"))
anchored = False
sent = spool.base
number = int(sys.argv[2])
for turn in range(6):
    for size in (5, 40, 9000):
        message = b"%d %s\\n" % (number, b"x" * size)
        try:
            spool.append(message)
        except OSError:
            tell(b"refused", number)
        else:
            tell(b"accepted", number)
        number += 1
    if spool.base is None:
        spool.anchor(1000)
    try:
        spool.tidy()
    except OSError:
        continue
    tell(b"discards", spool.base + spool.end)
    spool.discard(spool.end)
    try:
        spool.tidy()
    except OSError:
        pass
for size in (5, 40):
    try:
        spool.append(b"%d %s\\n" % (number, b"x" * size))
    except OSError:
        tell(b"refused", number)
    else:
        tell(b"accepted", number)
    number += 1
spool.close()
tell(b"closed", 0)
"""


def run_injected(path: Path, call: str, what: str, program: str = PROGRAM) -> subprocess.CompletedProcess[bytes]:
    trace = f"{path}.trace"
    prefix = ["strace", "-D", "-f", "-qq", "-o", trace, "-e", "signal=none", "-e", f"trace={call}"]
    return subprocess.run(
        [*prefix, "-e", f"inject={call}:{what}", os.path.realpath(sys.executable), "-c", program, str(path), "0"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def judge(path: Path, output: bytes, *, killed: bool) -> None:
    """What the file holds is what was accepted and not discarded, in order; killed, perhaps one message more."""
    told = [line.split() for line in output.splitlines()]
    accepted = [int(number) for what, number in told if what == b"accepted"]
    discarded = max((int(number) for what, number in told if what == b"discards"), default=1000)
    stream = b"".join(message(number) for number in accepted)
    spool = Spool(str(path), "n", make_framing("newline"))
    try:
        base = 1000 if spool.base is None else spool.base
        assert 1000 <= base <= discarded, f"base {base}, discarded up to {discarded}"
        found = bytes(spool.read(0, 1 << 20))
        assert len(found) == spool.end
    finally:
        spool._release()
    wanted = stream[base - 1000 :]
    if found != wanted:
        assert killed, f"{len(found)} bytes found, {len(wanted)} accepted"
        numbers = [int(number) for what, number in told if what in {b"accepted", b"refused"}]
        following = max(numbers, default=-1) + 1
        assert found == wanted + message(following)


def message(number: int) -> bytes:
    size = (5, 40, 9000)[number % 3]
    return b"%d %s\n" % (number, b"x" * size)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "fsync", "rename"])
def test_killed_at_any_call_it_has_all_that_was_accepted(tmp_path: Path, call: str) -> None:
    for number in range(1, 1000):
        path = tmp_path / f"spool{number}"
        ended = run_injected(path, call, f"signal=SIGKILL:when={number}")
        judge(path, ended.stdout, killed=ended.returncode != 0)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert number > 3, "the call was met"


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "fsync", "rename"])
def test_whatever_call_fails_what_was_accepted_is_kept_and_what_was_refused_is_not(tmp_path: Path, call: str) -> None:
    """The disk is full, and stays full; or is broken, once."""
    for number in range(1, 1000):
        what = f"error=ENOSPC:when={number}+" if number % 2 else f"error=EIO:when={number}"
        path = tmp_path / f"spool{number}"
        ended = run_injected(path, call, what)
        if b"Traceback" in ended.stderr:
            assert b"CheckpointError: cannot use the spool" in ended.stderr, (
                "it could not be made, so it accepts nothing"
            )
            assert b"accepted" not in ended.stdout
            continue
        assert b"closed" in ended.stdout, ended.stderr
        judge(path, ended.stdout, killed=False)
        if b"INJECTED" not in (tmp_path / f"spool{number}.trace").read_bytes():
            break
    assert number > 3, "the call was met"


def test_where_even_the_truncation_after_a_failed_append_fails_the_next_append_makes_up_for_it(tmp_path: Path) -> None:
    """The longest messages find no room (RLIMIT_FSIZE tears them), and ftruncate fails."""
    path = tmp_path / "spool"
    limit = 8_000
    program = PROGRAM.replace(
        "spool = module",
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nspool = module",
        1,
    )
    ended = run_injected(path, "ftruncate", "error=EIO:when=1..3", program)
    assert b"refused" in ended.stdout
    assert b"closed" in ended.stdout, ended.stderr
    judge(path, ended.stdout, killed=False)
    assert b"INJECTED" in (tmp_path / "spool.trace").read_bytes()
