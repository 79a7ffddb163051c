"""What tests need from the machine: skipped exactly where it is missing, with a reason, a command and a summary."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.faults.__main__ import SCENARIOS
from tests.support.needs import programs_in, summary
from tests.support.requirements import BASE_PROGRAMS, REGISTRY, Missing, known, missing, providing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT: Final = Path(__file__).parent.parent
TESTS: Final = ROOT / "tests"

PROGRAMS: Final = [name for name, need in REGISTRY.items() if need.programs and not need.after]
"""The requirements that are programs and no more than that."""

SUITE: Final = """
import pytest

def test_plain():
    pass

@pytest.mark.needs("{need}")
def test_marked():
    pass

@pytest.mark.needs("{need}")
class TestMarked:
    def test_inside(self):
        pass
"""

CONFTEST: Final = """
import os
from tests.support import requirements
if "HIDDEN" in os.environ:
    requirements.SBIN = ()
from tests.conftest import *
"""


def hide(folder: Path, hidden: Iterable[str]) -> str:
    """A PATH with what every Debian has and all registered programs of this machine, but for these."""
    place = folder / "path"
    place.mkdir()
    programs = {program for need in REGISTRY.values() for program in need.programs}
    for program in {*BASE_PROGRAMS, *programs}.difference(hidden):
        if (found := shutil.which(program)) is not None:
            (place / program).symlink_to(found)
    return str(place)


def run_suite(folder: Path, text: str, *words: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a small suite with the hooks of the real one; its exit code and output."""
    suite = folder / "suite"
    suite.mkdir(exist_ok=True)
    (suite / "conftest.py").write_text(CONFTEST)
    (suite / "test_it.py").write_text(text)
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            suite,
            "-c",
            os.devnull,
            *words,
            suite,
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": str(ROOT), **(environment or {})},
    )
    return ended.returncode, ended.stdout + ended.stderr


def ordinary(folder: Path, needs: Iterable[str]) -> dict[str, str]:
    """The environment of a user who lacks the programs of these requirements and may not install anything."""
    hidden = {program for need in needs for program in REGISTRY[need].programs}
    return {"PATH": hide(folder, hidden), "TAILSRV_TESTS_CACHE": str(folder / "no-cache"), "HIDDEN": "yes"}


def test_what_needs_a_missing_program_is_skipped_with_its_reason_and_command(tmp_path: Path) -> None:
    """And the last lines count them, and name one command that brings all; also with parallel workers."""
    suite = "\n".join(
        SUITE.format(need=need).replace("_marked", f"_{number}").replace("TestMarked", f"Test{number}")
        for number, need in enumerate(PROGRAMS)
    )
    code, said = run_suite(tmp_path, suite, "-n", "2", environment=ordinary(tmp_path, PROGRAMS))
    assert code == 0, said
    title, *rows, command, last = said.splitlines()[-len(PROGRAMS) - 3 :]
    assert f"1 passed, {2 * len(PROGRAMS)} skipped" in last
    assert title.startswith(f"{2 * len(PROGRAMS)} tests skipped")
    for need, row in zip(sorted(PROGRAMS), rows, strict=True):
        packages = " ".join(REGISTRY[need].packages)
        assert row.startswith(f"    2 need {need}: {', '.join(REGISTRY[need].programs)} not found; ")
        assert row.endswith("make programs" if REGISTRY[need].unpacked else f"apt-get install {packages}")
        assert all(package in command for package in REGISTRY[need].packages)
    assert "make programs" in command


@pytest.mark.needs("strace", "cc")
def test_where_one_program_is_hidden_only_its_tests_are_skipped(tmp_path: Path) -> None:
    other = SUITE.format(need="strace").replace("arked", "arked_too").replace("_plain", "_plain_too")
    code, said = run_suite(tmp_path, SUITE.format(need="cc") + other, environment=ordinary(tmp_path, ["cc"]))
    assert code == 0, said
    assert "4 passed, 2 skipped" in said
    assert "    2 need cc: cc not found" in said


def test_a_hidden_program_fails_the_marked_tests_where_it_could_have_been_installed(tmp_path: Path) -> None:
    """A gate does not skip in silence: where CI is set, or where apt-get would install the program without asking."""
    environment = ordinary(tmp_path, ["strace"])
    code, said = run_suite(tmp_path, SUITE.format(need="strace"), environment={**environment, "CI": "true"})
    assert code == 1
    assert "1 passed, 2 errors" in said
    assert "needs strace: strace not found" in said
    script = tmp_path / "path" / "sudo"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    (tmp_path / "path" / "apt-get").symlink_to(script)
    code, said = run_suite(tmp_path, SUITE.format(need="strace"), environment=environment)
    assert code == 1
    assert "this user may install it" in said


def test_what_is_there_never_skips(tmp_path: Path) -> None:
    code, said = run_suite(tmp_path, SUITE.format(need="ipv6") if missing("ipv6") is None else "def test(): pass")
    assert code == 0
    assert "skipped" not in said


def test_an_unknown_requirement_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    code, said = run_suite(tmp_path, SUITE.format(need="netcat"))
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "unknown requirement 'netcat'" in said
    assert "passed" not in said
    with pytest.raises(ValueError, match="unknown requirement 'x'"):
        known(["nc", "x"])


def test_a_skip_for_any_other_reason_is_a_failure(tmp_path: Path) -> None:
    suite = """
import pytest

def test_by_a_call():
    pytest.skip("no reason")

@pytest.mark.skip
def test_by_a_mark():
    pass

@pytest.mark.skipif(True, reason="x")
def test_by_a_condition():
    pass
"""
    code, said = run_suite(tmp_path, suite)
    assert code == 1
    assert said.count("use pytest.mark.needs") == 3
    assert "skipped" not in said.splitlines()[-1]
    code, said = run_suite(tmp_path, "import pytest\npytest.importorskip('no_such_module')\ndef test(): pass\n")
    assert code != 0
    assert "use pytest.mark.needs" in said


def test_a_test_that_runs_a_program_without_the_mark_fails(tmp_path: Path) -> None:
    calls = (
        "['strace', '-V']",
        "['setpriv', '--pdeathsig', 'KILL', 'strace', '-V']",
        "['bash', '-c', 'true; strace -V']",
        "'echo | strace -V', shell=True",
        "['no-such-program']",
    )
    suite = "import contextlib, subprocess\n"
    for number, call in enumerate(calls):
        suite += f"def test_{number}():\n    with contextlib.suppress(OSError): subprocess.run({call})\n"
    code, said = run_suite(tmp_path, suite)
    assert code == 1, said
    assert said.count("name it in pytest.mark.needs") == len(calls)


def test_the_summary_groups_by_requirement_the_most_frequent_first() -> None:
    nc = Missing("nc", "nc not found", installable=True, advice="sudo apt-get install netcat-openbsd")
    mount = Missing("mount", "must be superuser", installable=False, advice="run the tests as root")
    lines = summary([[nc], [mount], [mount, nc], [mount]])
    assert lines[:3] == [
        "4 tests skipped, each for something that this machine does not have:",
        "    3 need mount: must be superuser; run the tests as root",
        "    2 need nc: nc not found; sudo apt-get install netcat-openbsd",
    ]
    assert lines[3].endswith("make programs   (netcat-openbsd)")
    assert summary([]) == []


# --- who runs a program is marked for it


def sources() -> dict[str, ast.Module]:
    """Every module of the tests and of what they run, by its dotted name."""
    folders = [path for folder in ("tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in folders}


OWN: Final = {"tests.test_needs", "tests.support.requirements", "tests.support.needs", "tests.install", "tests.fresh"}
"""Modules that name programs because programs are their subject."""


class Reach:
    """Which registered programs each function of the tests starts by name, itself or through functions of ours."""

    def __init__(self) -> None:
        self.modules = sources()
        self._starts: dict[str, set[str]] = {}
        self._uses: dict[str, set[str]] = {}
        for name, module in self.modules.items():
            imported = {
                alias.asname or alias.name: f"{node.module}.{alias.name}"
                for node in ast.walk(module)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            for own, body in definitions(module):
                nodes = list(ast.walk(body))
                # An argument may name a fixture.
                words = {node.id for node in nodes if isinstance(node, ast.Name)}
                words |= {node.arg for node in nodes if isinstance(node, ast.arg)}
                self._uses[f"{name}.{own}"] = {imported.get(word, f"{name}.{word}") for word in words}
                self._starts[f"{name}.{own}"] = set().union(*map(commands, nodes))

    def programs(self, start: str) -> set[str]:
        """The programs that this function or class reaches."""
        seen, todo, found = {start}, [start], set[str]()
        while todo:
            name = todo.pop()
            found |= self._starts[name]
            more = {target for target in self._uses[name] & self._starts.keys() if not is_about_programs(target)} - seen
            seen |= more
            todo += more
        return found


def definitions(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The functions, classes and values of a module."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target.id, node.value


def is_about_programs(name: str) -> bool:
    """Whether this only names requirements: the mechanism, and the table of scenarios, which has a test of its own."""
    return name.rpartition(".")[0] in OWN or name == "tests.faults.__main__.SCENARIOS"


def commands(node: ast.AST) -> set[str]:
    """The registered programs that a list, a tuple or a call names first."""
    words: list[ast.expr] = []
    if isinstance(node, ast.List | ast.Tuple):
        words = node.elts
    elif isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in {"need", "Entry"}):
        words = node.args
    first = [word.value for word in words[:1] if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return {program for program in first if providing(program) is not None and len(words) > 1}


def marks(node: ast.AST, module: ast.Module) -> set[str]:
    """The requirements in the decorators of a test or in the `pytestmark` of its module, also within parametrize."""
    places: list[ast.AST] = list(getattr(node, "decorator_list", []))
    places += [
        each.value
        for each in module.body
        if isinstance(each, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in each.targets)
    ]
    return {
        word.value
        for place in places
        for call in ast.walk(place)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "needs"
        for word in call.args
        if isinstance(word, ast.Constant) and isinstance(word.value, str)
    }


def allowed(names: Iterable[str]) -> set[str]:
    """The programs that these requirements bring, with those of the requirements before them."""
    return {program for name in names for program in (*REGISTRY[name].programs, *allowed(REGISTRY[name].after))}


def test_every_test_that_runs_an_external_program_is_marked_for_it() -> None:
    reach = Reach()
    unmarked = []
    for name, module in reach.modules.items():
        if not name.rpartition(".")[2].startswith("test_") or name in OWN:
            continue
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                more = reach.programs(f"{name}.{node.name}") - allowed(marks(node, module))
                if more:
                    unmarked.append(f"{name}.{node.name} runs {sorted(more)}")
    assert unmarked == []


def test_every_fault_scenario_declares_what_its_rigs_run() -> None:
    reach = Reach()
    for name, entry in SCENARIOS.items():
        module, _, function = entry.place.partition(":")
        runs = reach.programs(f"tests.faults.{module}.{function}")
        # The fixtures have one table for all kinds of file systems: which of them a scenario takes can't be seen here.
        runs -= {"mkfs.ext4", "mkfs.xfs"} if {"ext4", "xfs"} & set(entry.needs) else set()
        assert runs <= allowed((*entry.needs, *entry.long_needs)), name


def test_programs_are_found_after_wrappers_and_within_a_shells_line() -> None:
    assert programs_in(["nc", "-N"]) == ["nc"]
    assert programs_in(["/usr/bin/nc"]) == []
    assert programs_in(["setpriv", "--pdeathsig", "KILL", "nbdkit"]) == ["setpriv", "nbdkit"]
    assert programs_in(["bash", "-c", "echo 0 | nc -N localhost 1; (strace -V)"]) == ["bash", "nc", "strace"]
    assert programs_in(["bash", "-c", "echo nc; grep -c strace file"]) == ["bash"]
    assert not set(BASE_PROGRAMS) & {program for need in REGISTRY.values() for program in need.programs}


def test_every_scenario_has_a_row_in_the_readme() -> None:
    """Each scenario has a row that describes its fixture."""
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", (TESTS / "faults/README.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == set(SCENARIOS)


@pytest.mark.needs("nc")
def test_the_probe_of_nc_tells_the_flavours_apart(tmp_path: Path) -> None:
    """A netcat that does not know -N is not the one that the tests and the README use."""
    assert missing("nc") is None
    other = tmp_path / "nc"
    other.write_text("#!/bin/sh\necho 'nc: invalid option -- N' >&2\nexit 1\n")
    other.chmod(0o755)
    script = "from tests.support.requirements import missing; print(missing('nc'))"
    said = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    ).stdout
    assert "does not know -N" in said
    assert "netcat-openbsd" in said or "make programs" in said
