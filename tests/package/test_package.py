"""The distributions as a user gets them: built once, looked into, and installed into empty environments."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemons import MODULES, Daemon
from tools.manpages import CLIENT, DAEMONS, manual_page

ROOT: Final = Path(__file__).parent.parent.parent
PROGRAMS: Final = Path(__file__).parent / "programs"
COMMANDS: Final = CLIENT | DAEMONS
COPIED: Final = shutil.ignore_patterns(".*", "build", "dist", "man", "__pycache__", "*.egg-info", "out")


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a command; its output. The test fails with all that a failing command says."""
    done = subprocess.run(
        command, check=False, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Archives:
    """The wheel and the source archive of each distribution, `client` and `tailsrv`."""

    wheels: dict[str, Path]
    sources: dict[str, Path]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """Both distributions, each wheel built from its source archive, from a copy of this folder, without a network."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "tree", ignore=COPIED, symlinks=True)
    built = folder / "dist"
    for place in ("client", "."):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, folder / "tree" / place, cwd=folder)
    return Archives(
        {"client": next(built.glob("tailsrv_client-*.whl")), "tailsrv": next(built.glob("tailsrv-*.whl"))},
        {"client": next(built.glob("tailsrv_client-*.tar.gz")), "tailsrv": next(built.glob("tailsrv-*.tar.gz"))},
    )


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def names_in_source(source: Path) -> set[str]:
    with tarfile.open(source) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()


@pytest.mark.needs("twine")
def test_a_package_index_accepts_all_archives(archives: Archives) -> None:
    paths = [*archives.wheels.values(), *archives.sources.values()]
    said = run(ROOT / ".venv-tools/bin/python", "-m", "twine", "--no-color", "check", "--strict", *paths)
    assert said.count("PASSED") == len(paths) == 4


@pytest.mark.parametrize(
    ("distribution", "packages", "commands"),
    [
        ("client", {"tailsrv_client", "tailsrv_formats"}, CLIENT),
        ("tailsrv", {"tailsrv", "tailsrv_runtime", "collator", "indexer", "compose"}, DAEMONS),
    ],
)
def test_a_wheel_contains_its_packages_their_types_and_their_manual_pages_and_nothing_else(
    archives: Archives, distribution: str, packages: set[str], commands: dict[str, int]
) -> None:
    names = names_in(archives.wheels[distribution])
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not re.search(r"\.(dist-info|data)$", top)} == packages
    assert {f"{package}/py.typed" for package in packages} <= names
    pages = {name.partition("/data/")[2] for name in names if "/data/" in name}
    assert pages == {f"share/man/man{section}/{name}.{section}" for name, section in commands.items()}


@pytest.mark.parametrize("distribution", ["client", "tailsrv"])
def test_the_metadata_name_the_licence_and_every_python_that_is_supported(
    archives: Archives, distribution: str
) -> None:
    said = metadata(archives.wheels[distribution])
    assert "License-Expression: Unlicense\n" in said
    assert "License-File: LICENSE\n" in said
    for minor in range(11, 15):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}\n" in said


def test_the_client_needs_msgspec_and_nothing_else(archives: Archives) -> None:
    needs = re.findall(r"^Requires-Dist: ([\w-]+)", metadata(archives.wheels["client"]), re.MULTILINE)
    assert needs == ["msgspec"]


def test_the_description_on_a_package_index_has_no_link_into_the_repository(archives: Archives) -> None:
    links = re.findall(r"\]\(([^)]+)\)", metadata(archives.wheels["tailsrv"]))
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_source_archive_has_what_a_packager_builds_and_tests_with(archives: Archives) -> None:
    names = names_in_source(archives.sources["tailsrv"])
    for name in (
        *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "README.md", "llms.txt"),
        *("Makefile", "make-venv.sh", "constraints.txt", "docs/protocols.md", "tests/conftest.py"),
        *("tools/manpages.py", "setup.py", "client/pyproject.toml", "client/setup.py", "bench/__init__.py"),
        "client/tailsrv_formats/py.typed",
    ):
        assert name in names
    assert not {name for name in names if name.endswith(".pyc") or name.startswith(("build/", "dist/"))}


def test_each_version_is_written_once_and_the_daemons_need_the_client_of_their_own_version() -> None:
    import tailsrv  # noqa: PLC0415 - the tests above look at archives only
    import tailsrv_client  # noqa: PLC0415

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tailsrv.__version__ == tailsrv_client.__version__
    assert f"tailsrv-client=={tailsrv_client.__version__}" in project["dependencies"]


# --- installed


@pytest.fixture(scope="module")
def client_alone(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the client's wheel; and msgspec, all that it depends on."""
    return installed(tmp_path_factory.mktemp("client"), archives.wheels["client"], needs=("msgspec",))


@pytest.fixture(scope="module")
def everything(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with both wheels."""
    return installed(
        tmp_path_factory.mktemp("both"),
        *archives.wheels.values(),
        needs=("click", "h11", "inotify_simple", "msgspec", "structlog"),
    )


def installed(folder: Path, *wheels: Path, needs: tuple[str, ...]) -> Path:
    """Install wheels without their dependencies, which needs no package index; return the environment's folder.

    The packages that they need are links to those of this environment: the project's own editable install in it stays
    invisible.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps", *wheels)
    target = next(folder.glob("lib/python3*/site-packages"))
    for package in needs:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (target / place.name).symlink_to(place)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_installed_command_states_its_version(everything: Path, command: str, tmp_path: Path) -> None:
    assert run(everything / "bin" / command, "--version", cwd=tmp_path).split()[-1] == "1.0.0"


@pytest.mark.parametrize("command", MODULES)
def test_a_daemon_listens_with_31_mib_at_most(everything: Path, command: str, tmp_path: Path) -> None:
    """In an environment without development tools: structlog imports rich where there is one, which takes 4 MiB."""
    (tmp_path / "log").write_text("line\n" * 1000)
    options = ("--listen", "127.0.0.1:0")
    with Daemon(command, tmp_path / "log", *options, python=everything / "bin/python", cwd=tmp_path) as daemon:
        assert daemon.memory() <= 31 << 20


@pytest.mark.parametrize("command", CLIENT)
def test_a_command_of_the_client_needs_no_package_of_the_daemons(
    client_alone: Path, command: str, tmp_path: Path
) -> None:
    assert run(client_alone / "bin" / command, "--version", cwd=tmp_path).split()[-1] == "1.0.0"


def test_the_client_leaves_the_names_of_the_daemons_to_applications(client_alone: Path, tmp_path: Path) -> None:
    """An application with packages of its own called collator, indexer and compose imports those, and the client."""
    names = ("collator", "indexer", "compose", "tailsrv")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'application {name}'\n")
    (tmp_path / "main.py").write_text(
        f"import {', '.join(names)}\n"
        "from tailsrv_client import Consumer, Index, Producer, TailsrvHandler\n"
        f"print([module.OWNER for module in ({', '.join(names)})], Consumer.__module__)\n"
    )
    said = run(client_alone / "bin/python", tmp_path / "main.py", cwd=tmp_path)
    assert said == f"{[f'application {name}' for name in names]} tailsrv_client.blocking.consumer\n"


# --- manual pages


@pytest.mark.parametrize(("command", "section"), COMMANDS.items())
def test_a_manual_page_has_the_sections_of_its_kind(command: str, section: int) -> None:
    page = manual_page((ROOT / f"docs/{command}.md").read_text(), section=section, version="1.0.0")
    places = [page.index(f'.SH "{title}"') for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT CODES")]
    assert places == sorted(places)
    assert page.startswith(f'.TH "{command.upper()}" "{section}"')


@pytest.mark.needs("groff")
@pytest.mark.parametrize(("command", "section"), COMMANDS.items())
def test_groff_formats_a_manual_page_without_a_warning(command: str, section: int, tmp_path: Path) -> None:
    page = tmp_path / f"{command}.{section}"
    page.write_text(manual_page((ROOT / f"docs/{command}.md").read_text(), section=section, version="1.0.0"))
    done = subprocess.run(
        ["groff", "-man", "-Kutf8", "-Tutf8", "-ww", "-P-cbou", page], capture_output=True, check=True, text=True
    )
    assert not done.stderr
    assert "NAME" in done.stdout


def test_a_page_that_does_not_begin_as_a_command_s_page_is_an_error() -> None:
    with pytest.raises(ValueError, match="starts with its name, a sentence and its synopsis"):
        manual_page("# name\n\n## Options\n", section=1, version="1")


# --- programs


def test_mypy_accepts_the_programs_of_users() -> None:
    """As strict as mypy can be."""
    assert "no issues" in run(sys.executable, "-m", "mypy", "--strict", *sorted(PROGRAMS.glob("*.py")))


def pyright(environment: Path, *words: str | Path) -> str:
    """What pyright says with `environment` activated; ``--pythonpath`` does not count for ``--verifytypes``."""
    activated = os.environ | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    return run(sys.executable, "-m", "pyright", *words, cwd=environment, env=activated)


@pytest.mark.needs("pyright")
def test_pyright_accepts_the_programs_of_users(client_alone: Path) -> None:
    """With the client installed from its wheel, so that its own `py.typed` counts."""
    assert "0 errors" in pyright(client_alone, PROGRAMS)


@pytest.mark.needs("pyright")
def test_every_symbol_of_the_client_has_a_complete_type(client_alone: Path) -> None:
    assert "Type completeness score: 100%" in pyright(
        client_alone, "--ignoreexternal", "--verifytypes", "tailsrv_client"
    )
