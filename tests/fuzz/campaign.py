"""A fuzzing campaign of one target: guided by coverage, by atheris.

python -m tests.fuzz.fuzz_header -max_total_time=60
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def run(*targets: Callable[[bytes], object]) -> None:
    """Hand every input to all targets, until one of them raises or the time is over."""
    atheris: Any = importlib.import_module("atheris")  # an extra that only fuzzing needs
    atheris.instrument_all()

    def one_input(data: bytes) -> None:
        for target in targets:
            target(data)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
