"""Fuzz target: the name line of the acknowledged lane.

Invariant: `read_name` returns None for what can still become a name line, a name of at most 128 allowed bytes for one,
and raises `InvalidNameError` for the rest; never anything else. A name never holds what could forge a log line or a
path.

    python -m tests.fuzz.fuzz_ack_name [atheris' options]
"""

from __future__ import annotations

from typing import Final

from tailsrv_formats.acknowledgement import NAME_BYTES, NAME_LINE_BYTES, InvalidNameError, read_name
from tests.fuzz.campaign import run

ALLOWED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"


def assert_input(data: bytes) -> None:
    """Check the invariant, for the line that the data begins with."""
    line = data[: data.find(b"\n") + 1 or NAME_LINE_BYTES][:NAME_LINE_BYTES]
    ended = line.endswith(b"\n")
    name = line[:-1].removesuffix(b"\r") if ended else line
    right = len(name) <= NAME_BYTES and not set(name) - set(ALLOWED)
    try:
        found = read_name(line)
    except InvalidNameError:
        assert not right or not ended
        assert ended or len(line) == NAME_LINE_BYTES
    else:
        if found is None:
            assert not ended
            assert len(line) < NAME_LINE_BYTES
        else:
            assert found == name
            assert right
            assert ended


if __name__ == "__main__":
    run(assert_input)
