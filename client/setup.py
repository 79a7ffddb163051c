"""What pyproject.toml cannot express: the manual pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from setuptools import setup

CLIENT = Path(__file__).resolve().parent
ROOT = CLIENT.parent


def manual_pages() -> list[tuple[str, list[str]]]:
    """Return the pages as data files: built in the repository, and taken as they are from a source archive."""
    if not {"sdist", "bdist_wheel"} & set(sys.argv):
        return []
    if (ROOT / "tools/manpages.py").exists():
        sys.path.insert(0, str(ROOT))
        from tools import manpages  # noqa: PLC0415 - it exists in the repository only

        found = re.search(r'^__version__ = "(.+)"$', (CLIENT / "tailsrv_client/__init__.py").read_text(), re.MULTILINE)
        if found is None:
            raise SystemExit("error: tailsrv_client/__init__.py has no line that begins with __version__")
        manpages.write_pages(ROOT / "docs", CLIENT / "man", manpages.CLIENT.items(), found[1])
    pages = sorted(CLIENT.glob("man/man*/*"))
    if not pages:
        raise SystemExit("error: client/man has no manual pages and ../tools is missing: build from the repository")
    return [(f"share/man/{page.parent.name}", [str(page.relative_to(CLIENT))]) for page in pages]


setup(data_files=manual_pages())
