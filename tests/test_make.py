"""The commands of a newcomer on machines where something is missing: one line says what, and the next run mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import fresh

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parent.parent

PYTHON: Final = """#!/bin/sh
# A Python whose venv is a folder with a script that stands for pip.
case "$1 $2" in
    "-m venv")
        mkdir -p "$3/bin"
        echo made >> "$3/../log"
        printf '%s\\n' '#!/bin/sh' 'echo "pip $*" >> "$LOG"; eval "$PIP_DOES"' > "$3/bin/python"
        chmod +x "$3/bin/python" ;;
    *) exec {python} "$@" ;;
esac
"""


class Checkout:
    """A folder with the Makefile's parts, and a Python that makes environments out of nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tailsrv"
        self.folder.mkdir()
        for name in ("Makefile", "make-venv.sh", "pyproject.toml", "client", "constraints.txt"):
            (self.folder / name).symlink_to(ROOT / name)
        self.log = self.folder / "log"
        self.python(PYTHON.format(python=sys.executable))

    def python(self, text: str) -> None:
        """Let `python3` be this script."""
        script = self.folder / "python3"
        script.write_text(text)
        script.chmod(0o755)

    def make(
        self, *words: str, prefix: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Run make; the exit code, what it says on standard error, and what happened."""
        self.log.unlink(missing_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(
            [*prefix, "make", "--no-print-directory", "PYTHON=./python3", *words],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**inherited, "LOG": str(self.log), "LC_ALL": "C", "PIP_DOES": "", **(environment or {})},
        )
        happened = self.log.read_text() if self.log.exists() else ""
        said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
        return done.returncode, "\n".join(said), happened


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def assert_one_line(said: str, *words: str) -> None:
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: ")
    for word in words:
        assert word in said


def test_an_environment_is_made_once_and_not_again(checkout: Checkout) -> None:
    code, said, happened = checkout.make("install")
    assert (code, said) == (0, "")
    assert happened.splitlines()[0] == "made"
    assert "--editable ." in happened
    assert checkout.make("install") == (0, "", "")


@pytest.mark.parametrize(
    ("does", "code"), [("echo 'ERROR: No matching distribution found' >&2; exit 1", 1), ("kill -KILL $PPID", 137)]
)
def test_a_half_finished_environment_is_made_again_from_nothing(checkout: Checkout, does: str, code: int) -> None:
    """Whether pip failed or everything was killed: the next make repairs it."""
    failed, said, _ = checkout.make("install", environment={"PIP_DOES": does})
    assert failed == 2
    if code == 1:
        assert_one_line(said, "pip cannot install", "No matching distribution found")
    assert not list((checkout.folder / ".venv").glob(".installed*"))
    (checkout.folder / ".venv" / "half").touch()
    assert checkout.make("install")[2].splitlines()[0] == "made"
    assert not (checkout.folder / ".venv" / "half").exists()


def test_an_environment_for_another_place_or_python_is_made_again(checkout: Checkout) -> None:
    checkout.make("install")
    moved = checkout.folder.with_name("moved")
    checkout.folder.rename(moved)
    checkout.folder, checkout.log = moved, moved / "log"
    assert "made" in checkout.make("install")[2]
    (moved / ".venv" / ".installed").write_text(f"3.10 {moved}\n")
    assert "made" in checkout.make("install")[2]
    assert checkout.make("install") == (0, "", "")


def test_what_work_needs_is_installed_after_what_users_need_and_a_failure_there_mends_itself(
    checkout: Checkout,
) -> None:
    code, said, _ = checkout.make(
        ".venv/.installed-for-work", environment={"PIP_DOES": 'case "$*" in *dev*) exit 1; esac'}
    )
    assert code == 2
    assert_one_line(said, "pip cannot install .[dev,bench]")
    code, _, happened = checkout.make(".venv/.installed-for-work")
    assert code == 0
    assert [line.rpartition(" ")[2] for line in happened.splitlines()] == ["made", ".", ".[dev,bench]"]


def test_a_python_without_venv_is_one_line_that_names_the_package(checkout: Checkout) -> None:
    checkout.python(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1; esac\nexec {sys.executable} "$@"\n')
    code, said, _ = checkout.make("demo")
    assert code == 2
    assert_one_line(said, "no venv", "apt-get install python3", "-venv")


def test_a_python_that_is_too_old_is_one_line(checkout: Checkout) -> None:
    checkout.python('#!/bin/sh\ncase "$2" in *"< (3, 11)"*) exit 1;; *version_info*) echo 3.9;; esac\n')
    code, said, _ = checkout.make("test")
    assert code == 2
    assert_one_line(said, "Python 3.9", "3.11", "make PYTHON=")


def test_no_python_is_one_line(checkout: Checkout) -> None:
    (checkout.folder / "python3").unlink()
    code, said, _ = checkout.make("demo")
    assert code == 2
    assert_one_line(said, "./python3 not found", "apt-get install python3")


def test_a_folder_of_another_user_is_one_line(checkout: Checkout) -> None:
    checkout.folder.chmod(0o555)
    prefix = ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ()
    code, said, _ = checkout.make("demo", prefix=prefix)
    checkout.folder.chmod(0o755)
    assert code == 2
    assert_one_line(said, str(checkout.folder), "cannot be written")


def test_the_gate_is_make_check_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make check"]


def test_make_check_lints_installs_and_tests() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "check"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    places = [
        shown.index(f"python -m {step}") for step in ("ruff check", "ruff format", "mypy", "tests.install", "pytest")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("script", ["make-venv.sh", ".ci/run"])
def test_the_shell_scripts_are_shell_and_may_be_run(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK)


# --- make fresh


def test_the_short_form_of_make_fresh_is_shell(tmp_path: Path) -> None:
    """Each command that a run would start, as it would be typed; `make fresh-short` prints them."""
    shown = subprocess.run(
        [sys.executable, "-m", "tests.fresh", "--show"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    script = tmp_path / "script"
    script.write_text(shown)
    subprocess.run(["bash", "-n", script], check=True)
    for user in ("root", fresh.USER):
        for command in fresh.COMMANDS:
            assert f"runuser -u {user} -- bash -c 'cd {fresh.home_of(user)}/tailsrv && {command}'" in shown


def test_a_bare_system_has_what_the_readme_asks_for_and_no_more() -> None:
    command = fresh.build_command(Path("/somewhere"))
    assert "--include=python3,python3-venv,git,make,ca-certificates" in command
    assert "--variant=apt" in command
    readme = (ROOT / "README.md").read_text()
    assert "git and make" in readme


def test_only_what_pip_and_apt_need_goes_into_a_bare_system() -> None:
    outside = {
        "PIP_INDEX_URL": "x",
        "https_proxy": "y",
        "NO_PROXY": "z",
        "SECRET": "s",
        "LD_PRELOAD": "p",
        "HOME": "/h",
    }
    command = fresh.enter_command(Path("/place"), fresh.USER, "true", outside)
    inside = command[command.index("-i") + 1 : command.index("/usr/sbin/runuser")]
    assert [word.partition("=")[0] for word in inside] == [
        *("HOME", "NO_PROXY", "PATH", "PIP_INDEX_URL", "TERM", "USER", "https_proxy"),
    ]


@pytest.mark.needs("mount")
def test_a_run_has_its_own_mounts_and_processes_and_its_last_lines_come_back(tmp_path: Path) -> None:
    """The real entry, into a root that is this machine's: what it mounts is gone with it."""
    root = tmp_path / "root"
    root.mkdir()
    enter = fresh.enter_command(root, "root", "echo $(id -u) $(ls /proc | grep -c '^[0-9]') $(ls -A /tmp | wc -l)", {})
    script = 'mount --rbind / "$0"; mkdir -p "$0$1"; exec "${@:2}"'
    before = Path("/proc/self/mounts").read_text()
    outside = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-ec",
        script,
        str(root),
        str(tmp_path / "none"),
    ]
    done = subprocess.run([*outside, *_in_this_folder(enter)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    user, processes, files = map(int, done.stdout.split())
    assert (user, files) == (0, 0)
    assert processes < 10
    assert Path("/proc/self/mounts").read_text() == before


def _in_this_folder(command: list[str]) -> list[str]:
    return [word.replace("cd /root/tailsrv && ", "cd / && ") for word in command]


def test_copying_into_a_system_does_not_follow_its_links_out_of_it(tmp_path: Path) -> None:
    """A link in the system whose target is absolute is, from outside, a file of this machine."""
    source, precious, root = tmp_path / "source", tmp_path / "precious", tmp_path / "root"
    source.write_text("new")
    precious.write_text("mine")
    target = root / str(source).lstrip("/")
    target.parent.mkdir(parents=True)
    target.symlink_to(precious)
    fresh.copy_in(source, root)
    assert precious.read_text() == "mine"
    assert target.read_text() == "new"
    assert not target.is_symlink()
    fresh.copy_in(tmp_path / "missing", root)


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "CACHE", tmp_path)
    with subprocess.Popen(["true"]) as ended:
        pass
    for name in (f"root-{ended.pid}", f"root-{os.getpid()}", "bookworm-python3"):
        (tmp_path / name).mkdir()
    fresh.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {f"root-{os.getpid()}", "bookworm-python3"}


def test_the_verdict_is_green_only_when_every_command_of_every_user_was() -> None:
    good = fresh.Result("root", (0, 0), 100.0, ("1 passed",))
    bad = fresh.Result(fresh.USER, (0, 2), 50.0, ("1 failed",))
    lines = fresh.verdict([good, bad])
    assert lines[-2:] == [
        "green: root (exit codes: `make demo DEMO_SECONDS=5` 0, `make test` 0)",
        f"RED: {fresh.USER} (exit codes: `make demo DEMO_SECONDS=5` 0, `make test` 2)",
    ]
    assert {"1 passed", "1 failed"} < set(lines)
    assert not fresh.Result("root", (1,), 1.0, ()).green
