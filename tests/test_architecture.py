"""The import arrows of docs/architecture.md, module by module; and what each daemon may load at its start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "tailsrv_formats": ROOT / "client",
    "tailsrv_client": ROOT / "client",
    "tailsrv_runtime": ROOT,
    "tailsrv": ROOT,
    "collator": ROOT,
    "indexer": ROOT,
    "compose": ROOT,
}
"""Each package of the product, and the folder that it is in."""

ARROWS = {
    "tailsrv_formats": set[str](),
    "tailsrv_client.protocol": {"tailsrv_formats", "tailsrv_client.errors"},
    "tailsrv_client": {"tailsrv_formats"},
    "tailsrv_runtime": {"tailsrv_formats"},
    "tailsrv": {"tailsrv_runtime", "tailsrv_formats"},
    "collator": {"tailsrv_runtime", "tailsrv_formats"},
    "indexer": {"tailsrv_runtime", "tailsrv_formats"},
    "compose": set(FOLDERS),
}
"""Each package, and what of ours it may import besides itself. The first entry that a module belongs to counts."""

PURE = {"socket", "select", "threading", "asyncio", "time", "subprocess", "signal", "fcntl", "tempfile"}
"""What the formats don't use: they have no I/O and no clock."""


def _modules() -> dict[str, Path]:
    """Every module of the product, by name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _imports(path: Path, *, lazy: bool = True) -> set[str]:
    """The modules that a file imports; those of ours as modules, whatever is imported from them.

    `lazy`: also those that are imported inside functions. What only type checkers import never counts.
    """
    names = set[str]()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            module = node.module or ""
            names.update(
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            )
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return names


def _all_imports(path: Path) -> set[str]:
    """Those for type checkers too: an arrow is an arrow."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    package, allowed = next((package, allowed) for package, allowed in ARROWS.items() if _is_in(module, package))
    ours = {name for name in _all_imports(MODULES[module]) if name.split(".")[0] in FOLDERS}
    assert not {name for name in ours if not any(_is_in(name, each) for each in {package, *allowed})}


def test_there_is_no_cycle() -> None:
    """Nor one that an import within a function hides."""
    arrows = {module: _imports(path) & set(MODULES) for module, path in MODULES.items()}
    while arrows:
        leaves = {module for module, targets in arrows.items() if not targets & set(arrows) - {module}}
        assert leaves, f"these import each other: {sorted(arrows)}"
        arrows = {module: targets for module, targets in arrows.items() if module not in leaves}


@pytest.mark.parametrize("module", [module for module in MODULES if _is_in(module, "tailsrv_formats")])
def test_the_formats_have_no_io(module: str) -> None:
    assert not _imports(MODULES[module]) & PURE


@pytest.mark.parametrize("command", ["tailsrv", "collator", "indexer"])
def test_a_daemon_does_not_load_at_its_start_what_it_may_never_need(command: str) -> None:
    """Start-up time and memory are imports; these are the heavy ones."""
    # asyncio and ssl are loaded: structlog imports them. docs/dependencies.md has what they cost.
    heavy = {"h11", "http", "multiprocessing"}
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {command}.cli, {command}.server; from tailsrv_runtime.logs import configure; configure('x');"
            " print(*sys.modules)",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "structlog" in loaded
    assert not heavy & set(loaded)
