"""The short form of the fault scenarios: each keeps its promise, and the harness finds what is planted.

Every scenario is a process of its own: it moves into a mount namespace, and takes its mounts with it when it ends.
`make faults` is the long form.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from tests.faults.__main__ import SCENARIOS
from tests.faults.checker import check_file
from tests.faults.daemon import ROOT
from tests.faults.messages import FRAMINGS, Stream, frame, next_payload

_SECONDS: Final = 110


def run_scenario(*words: str) -> str:
    """Run scenarios in their short form; gives the table, with the findings below it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    return done.stdout + done.stderr + f"exit code {done.returncode}\n"


@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=pytest.mark.needs(*entry.needs)) for name, entry in SCENARIOS.items()]
)
def test_scenario_keeps_the_promises(scenario: str) -> None:
    """Nothing acknowledged is lost, doubled or torn, nothing seen changes; and each control fails as it must."""
    table = run_scenario(scenario)
    assert "fixture missing" not in table, table
    assert table.endswith("exit code 0\n"), table


@pytest.mark.parametrize("framing", FRAMINGS)
def test_checker_finds_each_kind_of_damage(framing: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One lost, doubled, torn or exchanged message among hundreds is counted as what it is."""
    streams = [Stream(number, framing, seed=9) for number in range(2)]
    path = tmp_path_factory.mktemp("stream") / "file"
    messages = [stream.message(sequence) for sequence in range(120) for stream in streams]
    named = next(
        index for index in range(100, 240) if streams[index % 2].is_named(index // 2) and len(messages[index]) > 60
    )
    promised = {stream.name: stream.end(119) for stream in streams}

    def judge(parts: list[bytes]) -> tuple[int, int, int]:
        path.write_bytes(b"".join(parts))
        found = check_file(path, streams, promised)
        return found.lost, found.twice, found.torn

    assert judge(messages) == (0, 0, 0)
    assert judge(messages[:named] + messages[named + 1 :])[0] == 1
    assert judge([*messages[: named + 1], *messages[named:]])[1] == 1
    assert judge([*messages[:named], messages[named][:50], *messages[named:]])[2] >= 1
    assert judge(messages[:-40])[0] > 0


@pytest.mark.parametrize("framing", FRAMINGS)
def test_framing_of_the_harness_takes_back_what_it_gave(framing: str) -> None:
    """Payloads of every length that has an edge come back out of a stream of them."""
    payloads = [b"x" * length for length in (0, 1, 127, 128, 129, 16_383, 16_384, 65_535)]
    data = b"".join(frame(framing, payload) for payload in payloads)
    at = 0
    for payload in payloads:
        spans = next_payload(framing, data, at)
        assert spans is not None
        assert data[spans[0] : spans[1]] == payload
        at = spans[2]
    assert at == len(data)
    assert next_payload(framing, data[:-1], len(data) - len(frame(framing, payloads[-1]))) is None
