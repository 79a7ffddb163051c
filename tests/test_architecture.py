"""The import arrows of docs/architecture.md, and what each daemon may load at its start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("tailsrv", "collator", "indexer", "tailsrv_client", "compose", "tests", "bench")

ARROWS = {
    "tailsrv/kit": {"tailsrv.kit"},
    "tailsrv": {"tailsrv"},
    "collator/framing.py": set[str](),
    "collator": {"collator", "tailsrv.kit"},
    "indexer": {"indexer", "tailsrv.kit", "collator.framing"},
    "tailsrv_client": {"tailsrv_client", "tailsrv.client", "tailsrv.kit", "collator.framing"},
    "compose": {"compose", "tailsrv", "collator", "indexer", "tailsrv_client"},
}
"""Each folder or file, and what of ours it may import. The first entry that a path matches counts."""


def _sources() -> list[Path]:
    return [path for folder in OURS[:5] for path in sorted((ROOT / folder).rglob("*.py"))]


def _imported(path: Path) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in OURS}


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    allowed = next(allowed for prefix, allowed in ARROWS.items() if f"{relative}/".startswith(f"{prefix}/"))
    strangers = {
        name for name in _imported(path) if not any(name == own or name.startswith(f"{own}.") for own in allowed)
    }
    assert not strangers


@pytest.mark.parametrize("command", ["tailsrv", "collator", "indexer"])
def test_a_daemon_does_not_load_at_its_start_what_it_may_never_need(command: str) -> None:
    """Start-up time and memory are imports; these are the heavy ones."""
    heavy = {"asyncio", "ssl", "prometheus_client", "aiofiles", "h11", "http", "multiprocessing"}
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {command}.cli, {command}.server; from tailsrv.kit.logs import configure; configure('x');"
            " print(*sys.modules)",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "structlog" in loaded
    assert not heavy & set(loaded)
