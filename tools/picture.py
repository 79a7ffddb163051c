"""`make picture`: runs `make demo` in a terminal and writes what it shows to docs/picture/demo.svg.

The demo runs on a pseudo-terminal, so the picture has the colours that a person sees. Rich draws it. The fonts are
those of the reader's machine, because a picture on a page may not load any from elsewhere.
"""

from __future__ import annotations

import os
import pty
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE: Final = Path(__file__).parent.parent / "docs" / "picture" / "demo.svg"
COLUMNS: Final = 102
LINES: Final = 30
SECONDS: Final = 4
"""How long the demo runs; the picture shows its first lines."""

_FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def terminal_output(seconds: int) -> str:
    """Run the demo on a pseudo-terminal to its end; what it printed."""
    shown = bytearray()

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 1 << 16)
        shown.extend(data)
        return data

    os.environ.update(DEMO_SECONDS=str(seconds), TMPDIR="/tmp", COLUMNS=str(COLUMNS), TERM="xterm-256color")  # noqa: S108 - the picture names it
    os.environ.pop("NO_COLOR", None)
    status = pty.spawn([sys.executable, "-m", "compose.demo"], read)
    if status:
        raise SystemExit(f"error: the demo failed with status {os.waitstatus_to_exitcode(status)}: {shown.decode()}")
    return shown.decode().replace("\r\n", "\n")


def draw(shown: str) -> str:
    """The picture of a terminal with these lines."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    prompt = "$ make demo\n" + "\n".join(shown.strip("\n").split("\n")[:LINES])
    console.print(Text.from_ansi(prompt))
    svg = _FONTS.sub("", console.export_svg(title="make demo", theme=MONOKAI, unique_id="demo"))
    return svg.replace("<text ", '<text xml:space="preserve" ')  # some renderers drop the blanks that begin a line


def main() -> None:
    """Write the picture."""
    svg = draw(terminal_output(SECONDS))
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text("".join(f"{line.rstrip()}\n" for line in svg.splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
