"""`python -m tests.fresh`: `make demo` and `make test` on a bare Debian, as root and as an ordinary user without sudo.

Builds a bare system (apt, python3, python3-venv, git, make, certificates) with mmdebstrap and keeps it for some days.
Each user gets a copy of its own with a clone of HEAD inside, and runs in mount and PID namespaces of its own: mounts
and processes end with the namespaces, however this ends, and the copies are removed. Only the bare system is kept.

A copy uses this machine's configuration of apt and pip, and its certificates: what it can reach, the copy can reach.
This module imports the standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = Path(os.environ.get("TAILSRV_FRESH_CACHE", "/var/cache/tailsrv-fresh"))
KEEP_DAYS: Final = 7
PACKAGES: Final = ("python3", "python3-venv", "git", "make", "ca-certificates")
COMMANDS: Final = ("make demo DEMO_SECONDS=5", "make test")
LAST_LINES: Final = 15
USER: Final = "newcomer"

_SOURCES: Final = (".list", ".sources")
_APT: Final = ("sources.list", "sources.list.d", "trusted.gpg", "trusted.gpg.d", "keyrings")
_COPIED: Final = (*(f"/etc/apt/{name}" for name in _APT), "/etc/pip.conf", "/etc/resolv.conf", "/etc/hosts")
_CERTIFICATES: Final = ("/usr/local/share/ca-certificates", "/etc/ssl/certs/ca-certificates.crt")
_PASSED: Final = re.compile(r"(pip_\w+|\w+_proxy|ssl_cert_file|requests_ca_bundle|curl_ca_bundle)", re.IGNORECASE)
"""Variables that pip and apt need to reach their registries; nothing else of our environment goes in."""

_ENTER: Final = """
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
chroot "$root" "$@" &
wait $!
"""
"""The first process of the namespaces: it mounts, and reaps whatever loses its parent, as a machine's init does."""


class FreshError(Exception):
    """It can't be done here; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """How one user fared: the exit code and the output of each command."""

    user: str
    codes: tuple[int, ...]
    seconds: float
    lines: tuple[str, ...]

    @property
    def green(self) -> bool:
        return not any(self.codes)


def suite() -> str:
    """The name of this machine's Debian release."""
    with open("/etc/os-release", encoding="utf-8") as lines:
        found = dict(line.rstrip("\n").split("=", 1) for line in lines if "=" in line)
    if found.get("ID") != "debian":
        raise FreshError("make fresh copies this machine's apt configuration, so it works on Debian only")
    return found["VERSION_CODENAME"]


def build_command(place: Path) -> list[str]:
    """The command that builds the bare system in `place`, from the machine's own apt sources."""
    sources = [path for path in (Path("/etc/apt/sources.list"),) if path.is_file()]
    sources += sorted(path for path in Path("/etc/apt/sources.list.d").glob("*") if path.suffix in _SOURCES)
    options = [f"--aptopt={path}" for path in apt_options()]
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}", *options]
    return [*command, suite(), str(place), *map(str, sources)]


def apt_options() -> list[Path]:
    """The files of apt's configuration that say how to reach a mirror; the others are about this machine's packages."""
    files = [path for path in (Path("/etc/apt/apt.conf"), *Path("/etc/apt/apt.conf.d").glob("*")) if path.is_file()]
    return sorted(path for path in files if re.search(r"^\s*Acquire", path.read_text(errors="replace"), re.MULTILINE))


def enter_command(root: Path, user: str, command: str, environment: Mapping[str, str]) -> list[str]:
    """The command that runs `command` as `user` in the project's folder of the system in `root`."""
    home = home_of(user)
    variables = {name: value for name, value in environment.items() if _PASSED.fullmatch(name)}
    variables |= {"HOME": home, "USER": user, "TERM": "dumb", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    if user == "root":
        variables["PATH"] = f"/usr/local/sbin:/usr/sbin:/sbin:{variables['PATH']}"
    assigned = [f"{name}={value}" for name, value in sorted(variables.items())]
    # The namespaces end with this process, also when it is killed.
    outside = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    outside += ["--propagation", "private", "bash", "-ec", _ENTER, "enter", str(root)]
    inside = ["/usr/bin/env", "-i", *assigned, "/usr/sbin/runuser", "-u", user, "--"]
    return [*outside, *inside, "bash", "-c", f"cd {home}/tailsrv && {command}"]


def home_of(user: str) -> str:
    """Where a user lives."""
    return "/root" if user == "root" else f"/home/{user}"


# --- the bare system and its copies


def check_rights() -> None:
    """Make sure that this can work. Raises FreshError, in one line."""
    if os.geteuid() != 0:
        raise FreshError("make fresh mounts file systems: run it as root")
    if shutil.which("mmdebstrap") is None:
        if shutil.which("apt-get") is None:
            raise FreshError("make fresh needs mmdebstrap, and there is no apt-get to install it with")
        for words in (["update"], ["install", "--yes", "--no-install-recommends", "mmdebstrap"]):
            done = subprocess.run(["apt-get", "-qq", *words], check=False, stdout=subprocess.DEVNULL)
            if done.returncode:
                raise FreshError("make fresh needs mmdebstrap: apt-get install mmdebstrap fails")


def bare_system() -> Path:
    """The bare system; it is built when there is none or when it is old. Raises FreshError."""
    base = CACHE / f"{suite()}-{'-'.join(PACKAGES)}"
    with contextlib.suppress(OSError):
        if time.time() - base.stat().st_mtime < KEEP_DAYS * 86400:
            return base
    new = CACHE / f"building-{os.getpid()}"
    try:
        for attempt in range(3):
            if subprocess.run(build_command(new), check=False, stdin=subprocess.DEVNULL).returncode == 0:
                break
            remove(new)
            time.sleep(5 * attempt)
        else:
            raise FreshError("mmdebstrap cannot build the bare system; its words are above")
        remove(base)
        new.rename(base)
        os.utime(base)
    finally:
        remove(new)
    return base


def remove(place: Path) -> None:
    """Remove a system and nothing that is mounted in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", place], check=False)


def sweep() -> None:
    """Remove what a run left that was killed: folders of processes that are gone."""
    for left in CACHE.glob("*-[0-9]*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            remove(left)


@contextlib.contextmanager
def system_for(user: str, base: Path) -> Iterator[Path]:
    """A copy of the bare system with the user, the machine's configuration and a clone of HEAD; removed at the end."""
    place = CACHE / f"{user}-{os.getpid()}"
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", base, place], check=True)
        shutil.rmtree(place / "etc/apt/sources.list.d", ignore_errors=True)
        (place / "etc/apt/sources.list").unlink(missing_ok=True)
        for path in (*apt_options(), *map(Path, (*_COPIED, *_CERTIFICATES))):
            copy_in(path, place)
        if user != "root":
            subprocess.run(["chroot", place, "useradd", "--create-home", "--shell", "/bin/bash", user], check=True)
        project = place / home_of(user).lstrip("/") / "tailsrv"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, project], check=True)
        subprocess.run(["chroot", place, "chown", "-R", f"{user}:", f"{home_of(user)}/tailsrv"], check=True)
        yield place
    finally:
        remove(place)


def copy_in(source: Path, root: Path) -> None:
    """Copy a file or folder of this machine to the same place under `root`.

    What is there goes first: it may be a symbolic link whose target, from outside, is a file of this machine.
    """
    if not source.exists():
        return
    target = root / str(source).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_file():
        target.unlink()
    if source.is_dir():
        subprocess.run(["cp", "-a", "--remove-destination", "-T", source, target], check=True)
    else:
        shutil.copy(source, target)


# --- the proof


def prove(user: str, base: Path, commands: tuple[str, ...] = COMMANDS) -> Result:
    """Run the commands as this user, until one fails, in a copy of the bare system; show their output as it comes."""
    begin = time.monotonic()
    codes: list[int] = []
    lines: list[str] = []
    with system_for(user, base) as place:
        for command in commands:
            _say(f"--- {user}: {command}")
            with subprocess.Popen(
                enter_command(place, user, command, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        lines.append(line.rstrip("\n"))
                        _say(lines[-1])
                    codes.append(process.wait())
                finally:
                    process.kill()
            if codes[-1]:
                break
    return Result(user, tuple(codes), time.monotonic() - begin, tuple(lines[-LAST_LINES:]))


def verdict(results: list[Result]) -> list[str]:
    """The last lines of each user's run, and how it came out."""
    lines = []
    for result in results:
        lines += ["", f"=== {result.user}, {result.seconds:.0f} s", *result.lines]
    lines.append("")
    for result in results:
        codes = ", ".join(f"`{command}` {code}" for command, code in zip(COMMANDS, result.codes, strict=False))
        lines.append(f"{'green' if result.green else 'RED'}: {result.user} (exit codes: {codes})")
    return lines


def main() -> None:
    """Prove it for each user; exit code 0 when all are green."""
    parser = argparse.ArgumentParser(prog="make fresh", description=__doc__)
    parser.add_argument("users", nargs="*", default=["root", USER], help=f"root, {USER}; default: both")
    parser.add_argument("--show", action="store_true", help="print the commands and end")
    options = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _: sys.exit(128 + number))  # through every `finally`
    try:
        if options.show:
            for line in short_form(options.users):
                _say(line)
            return
        check_rights()
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one run builds the bare system, the others wait for it
            sweep()
            base = bare_system()
        results = [prove(user, base) for user in options.users]
    except (FreshError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    for line in verdict(results):
        _say(line)
    sys.exit(0 if all(result.green for result in results) else 1)


def short_form(users: list[str]) -> list[str]:
    """What a run would do: the command that builds the system and those that run in it, as lines for a shell."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        commands = [build_command(place)]
        commands += [enter_command(place, user, command, {}) for user in users for command in COMMANDS]
    return [shlex.join(command) for command in commands]


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # the output is what this program is for


if __name__ == "__main__":
    main()
