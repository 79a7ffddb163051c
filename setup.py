"""What pyproject.toml cannot express: the manual pages, and a README whose links work outside the repository."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build backend does not put the project's folder there


def manual_pages() -> list[tuple[str, list[str]]]:
    """Build the pages, and return them as data files; an editable install has none and needs no Markdown library."""
    if not {"sdist", "bdist_wheel"} & set(sys.argv):
        return []
    from tools.manpages import DAEMONS, write_pages  # noqa: PLC0415 - see above

    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "tailsrv/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("error: tailsrv/__init__.py has no line that begins with __version__")
    pages = write_pages(ROOT / "docs", ROOT / "man", DAEMONS.items(), found[1])
    return [(f"share/man/{page.parent.name}", [str(page.relative_to(ROOT))]) for page in pages]


def readme() -> str:
    """Return README.md with links below [project.urls] Documentation; without that URL, relative links become text."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    url = project.get("urls", {}).get("Documentation", "").rstrip("/")
    return re.sub(
        r"(!?\[[^\]]*\])\((?!https?:|mailto:|#)([^)\s]+)\)",
        lambda link: f"{link[1]}({url}/{link[2]})" if url else link[1].lstrip("!")[1:-1],
        (ROOT / "README.md").read_text(encoding="utf-8"),
    )


setup(data_files=manual_pages(), long_description=readme(), long_description_content_type="text/markdown")
