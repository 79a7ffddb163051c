"""`python -m tests.install`: installs the programs that tests need, where this user may; `make test` runs it first.

Root may, and so may a user who has sudo without a password; apt-get has to be there. Where installing is not possible
this does nothing, and the tests that need a program are skipped. It is quick and silent when all is there, and never
fails: a program that could not be installed is the tests' failure, which names it.

Services (nginx, rsyslog, syslog-ng) are unpacked into a cache folder instead of installed: installing would start them
on this machine, and syslog-ng's package would remove rsyslog's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.requirements import REGISTRY, cache_folders, extend_path, may_install, to_install

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTEMPTS: Final = 3
PAUSE_SECONDS: Final = 10.0
"""A mirror that is busy for a moment is asked again."""

LOCK_SECONDS: Final = 300
"""How long to wait for another apt-get."""

_URI: Final = re.compile(r"^'[^']*' ([^_\s]+)_\S+\.deb ", re.MULTILINE)

_WRAPPER: Final = """#!/bin/sh
export LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec {program} {options} "$@"
"""

_MODULES: Final = {"rsyslogd": ("-M", "rsyslog"), "syslog-ng": ("--module-path", "syslog-ng/[0-9]*")}
"""Programs that look for their modules where their package would have put them: the option that says where they are."""


class InstallError(Exception):
    """A package could not be brought; the message has apt's own words."""


def apt(*words: str, rights: Sequence[str] = ()) -> str:
    """Run apt-get; what it prints. Raises InstallError."""
    command = [*rights, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "--quiet", "--quiet", "--yes"]
    command += ["--option", f"DPkg::Lock::Timeout={LOCK_SECONDS}", "--no-install-recommends", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise InstallError(f"apt-get {words[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def install(packages: Sequence[str], rights: Sequence[str]) -> None:
    """Install packages. Raises InstallError."""
    if packages:
        apt("install", *packages, rights=rights)


def unpack(program: str, packages: Sequence[str], cache: Path) -> None:
    """Unpack packages, and what they depend on and this machine does not have, with a script that runs `program`.

    Raises InstallError.
    """
    needed = _URI.findall(apt("install", "--print-uris", *packages))
    with tempfile.TemporaryDirectory(dir=cache, prefix="unpacking-") as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        downloads = Path(scratch, "packages")
        downloads.mkdir()
        command = ["apt-get", "--quiet", "--quiet", "download", *(needed or packages)]
        done = subprocess.run(command, cwd=downloads, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InstallError(f"apt-get download: {(done.stderr.splitlines() or ['it failed'])[-1]}")
        for package in sorted(downloads.glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        place = cache / program
        shutil.rmtree(place, ignore_errors=True)
        root.rename(place)
    _write_wrapper(program, place, cache / "bin" / program)


def _write_wrapper(program: str, place: Path, script: Path) -> None:
    binary = next(path for folder in ("usr/sbin", "usr/bin") if (path := place / folder / program).exists())
    libraries = [*place.glob("usr/lib/*-linux-gnu"), *place.glob("lib/*-linux-gnu"), *place.glob("usr/lib/syslog-ng")]
    options = ""
    if program in _MODULES:
        option, where = _MODULES[program]
        options = f"{option} {next(place.glob(f'usr/lib/*/{where}'), None) or next(place.glob(f'usr/lib/{where}'))}"
    script.parent.mkdir(exist_ok=True)
    text = _WRAPPER.format(libraries=":".join(map(str, libraries)), program=binary, options=options)
    new = script.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o755)
    new.replace(script)


def bring(names: Sequence[str], rights: Sequence[str]) -> None:
    """Install or unpack the packages of these requirements. Raises InstallError."""
    install([package for name in names if not REGISTRY[name].unpacked for package in REGISTRY[name].packages], rights)
    cache = cache_folders()[0]
    cache.mkdir(parents=True, exist_ok=True)
    for name in names:
        if REGISTRY[name].unpacked:
            unpack(REGISTRY[name].programs[0], REGISTRY[name].packages, cache)


def main() -> None:
    """Bring what is missing; say what, and what failed, in a line each."""
    os.umask(0o022)
    extend_path()
    names = to_install()
    rights = may_install()
    if names and rights is None and "--must" in sys.argv:
        sys.exit("error: programs can be installed by root, or by a user with sudo and no password, where apt-get is")
    if not names or rights is None:
        return
    _say(f"the tests need {', '.join(names)}: installing (this happens once)")
    failure = ""
    for attempt in range(ATTEMPTS):
        try:
            if attempt:
                time.sleep(PAUSE_SECONDS * (attempt - 1))
                apt("update", rights=rights)
            bring(names, rights)
        except InstallError as error:
            failure = str(error)
        else:
            return
    _say(f"not installed, so tests will fail: {failure}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # what it is for


if __name__ == "__main__":
    main()
