"""What tests need from the machine beyond Python: how each requirement is probed, and what brings it.

A test names its requirements: `@pytest.mark.needs("nc", "strace")`. A requirement is *probed*, not looked up: nc has to
be the flavour that knows `-N`, strace has to be able to trace and inject, a mount has to succeed. A program that is
missing is installed by `python -m tests.install` (`make test` runs it first) where this user may install packages.

This module imports the standard library only.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROBE_SECONDS: Final = 20.0
"""Seconds after which a probe that does not end counts as failed."""

DESCRIPTORS: Final = 8192
"""Descriptors that the tests with thousands of clients need in one process."""

INSTALL: Final = ("apt-get", "install", "--yes", "--no-install-recommends")

_SO_ATTACH_FILTER: Final = 26
SBIN: tuple[str, ...] = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where programs of administrators are, which an ordinary user's PATH does not name."""

_IN_NAMESPACE: Final = ("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c")


@dataclass(frozen=True)
class Requirement:
    """One thing that a test may need.

    `programs` are the names by which tests run it; `packages` the Debian packages that bring it. Without packages it is
    a right or a feature of the kernel. `after` names requirements that have to be met first. `probe` returns why it
    does not work, or an empty text. `mends` says whether installing `packages` mends a failed probe: another flavour of
    nc does, a ban on tracing does not go away. `unpacked` packages are not installed but unpacked into the cache
    folder, because installing them would start a service on this machine or would remove another package.
    """

    programs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    probe: Callable[[], str] = str
    mends: bool = False
    unpacked: bool = False
    after: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Missing:
    """A requirement that this machine does not meet: its name, why, whether a package brings it, and what to do."""

    name: str
    reason: str
    installable: bool
    advice: str

    def __str__(self) -> str:
        return f"needs {self.name}: {self.reason}; {self.advice}"


# --- where programs are


def cache_folders() -> list[Path]:
    """Return the folders with unpacked packages: this user's own, which the installer fills, and then root's."""
    named = os.environ.get("TAILSRV_TESTS_CACHE")
    if named:
        return [Path(named)]
    system = Path("/var/cache/tailsrv-tests")
    if os.geteuid() == 0:
        return [system]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME") or "/nonexistent", ".cache")
    own = Path(home, "tailsrv-tests")
    parent = next(folder for folder in own.parents if folder.exists())
    if not os.access(parent, os.W_OK):
        own = Path(tempfile.gettempdir(), f"tailsrv-tests-{os.geteuid()}")
    return [own, system]


def extend_path() -> None:
    """Let this process and its children find programs of administrators and unpacked ones, after all others."""
    found = os.environ.get("PATH", os.defpath).split(":")
    caches = [folder / "bin" for folder in cache_folders()]
    trusted = [str(folder) for folder in caches if folder.is_dir() and folder.stat().st_uid in {0, os.geteuid()}]
    os.environ["PATH"] = ":".join([*found, *(place for place in (*SBIN, *trusted) if place not in found)])


# --- probes: each returns why it does not work, or ""


def _ends_well(*command: str, script: bytes = b"") -> str:
    """Run a command; why it failed, in its own words."""
    try:
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            check=False,
            timeout=PROBE_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    words = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return words[-1] if words else f"{command[0]} exits with {done.returncode}"


def _netcat() -> str:
    """Exchange a line with a peer of ours: `-N` has to half-close at the end of the input."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PROBE_SECONDS)

        def answer() -> None:
            with server.accept()[0] as peer:
                peer.settimeout(PROBE_SECONDS)
                while data := peer.recv(100):
                    peer.sendall(data.upper())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        command = ["nc", "-N", "127.0.0.1", str(server.getsockname()[1])]
        try:
            done = subprocess.run(command, input=b"word", capture_output=True, check=False, timeout=PROBE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return "" if done.stdout == b"WORD" else "this nc is not OpenBSD's: it does not know -N"


def _strace() -> str:
    """Inject an error into a call; a ban on tracing (a container, Yama) or an old strace shows here."""
    words = ("-qq", "-o", "/dev/null", "-e", "signal=none", "-e", "trace=read", "-e", "inject=read:error=EIO")
    said = _ends_well("strace", *words, "cat", "/dev/null")
    return "" if "Input/output error" in said else f"strace cannot trace: {said or 'no call was injected'}"


def _compiler() -> str:
    with tempfile.TemporaryDirectory() as folder:
        program = b"#include <pthread.h>\n#include <stdio.h>\nint main(void) { return 0; }\n"
        return _ends_well("cc", "-pthread", "-x", "c", "-", "-o", f"{folder}/program", script=program)


def _in_namespace(script: str, *words: str) -> str:
    """Run a shell script with a folder of its own as $0, in a mount namespace of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return _ends_well(*_IN_NAMESPACE, script, folder, *words)


def _mount() -> str:
    return _in_namespace('mount -t tmpfs -o size=512k none "$0"')


def _file_system(kind: str, mebibytes: int, *options: str) -> str:
    script = f'truncate -s {mebibytes}M "$0/image"; mkdir "$0/m"; mkfs.{kind} "$@" "$0/image"; '
    return _in_namespace(f'{script} mount -t {kind} -o loop "$0/image" "$0/m"; umount "$0/m"', *options)


def _overlay() -> str:
    options = "lowerdir=$0/base/l,upperdir=$0/base/u,workdir=$0/base/w"
    script = 'mkdir "$0/base" "$0/m"; mount -t tmpfs none "$0/base"; cd "$0/base"; mkdir l u w;'
    return _in_namespace(f'{script} mount -t overlay overlay -o "{options}" "$0/m"')


def _fuse() -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


def _network_namespace() -> str:
    return _ends_well("unshare", "--net", "ip", "link", "set", "lo", "up")


def _ipv6() -> str:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return f"::1 cannot be bound: {error.strerror}"
    return ""


def _descriptors() -> str:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= DESCRIPTORS
    return "" if enough else f"a process may have {hard} descriptors open, {DESCRIPTORS} are needed"


def _namespace() -> str:
    said = _ends_well("unshare", "--mount", "true")
    return f"this user may not mount file systems ({said})" if said else ""


def _socket_filter() -> str:
    """Attach a filter that drops everything: the kernel may refuse programs of ordinary users (bpf_jit_limit)."""
    with socket.socket() as probe:
        instruction = ctypes.create_string_buffer(b"\x06" + bytes(7), 8)  # return 0 bytes
        program = (1).to_bytes(8, "little") + ctypes.addressof(instruction).to_bytes(8, "little")
        try:
            probe.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError as error:
            return f"no filter can be attached to a socket: {error.strerror}"
    return ""


def _device() -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mknod(f"{folder}/device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except OSError as error:
            return f"no device can be made: {error.strerror}"
    return ""


def _root() -> str:
    return "" if os.geteuid() == 0 else "this user is not root"


def _version(program: str, option: str) -> Callable[[], str]:
    return functools.partial(_ends_well, program, option)


# --- the registry

_AS_ROOT: Final = "run the tests as root, outside a container without privileges"

REGISTRY: Final[dict[str, Requirement]] = {
    "nc": Requirement(("nc",), ("netcat-openbsd",), _netcat, mends=True),
    "ncat": Requirement(("ncat",), ("ncat",), _version("ncat", "--version"), mends=True),
    "nc.traditional": Requirement(("nc.traditional",), ("netcat-traditional",)),
    "socat": Requirement(("socat",), ("socat",), _version("socat", "-V"), mends=True),
    "busybox": Requirement(("busybox",), ("busybox",), _version("busybox", "--help"), mends=True),
    "strace": Requirement(("strace",), ("strace",), _strace, advice="run the tests where processes may be traced"),
    "cc": Requirement(("cc",), ("gcc", "libc6-dev"), _compiler, mends=True),
    "nginx": Requirement(("nginx",), ("nginx-light",), _version("nginx", "-v"), mends=True, unpacked=True),
    "rsyslogd": Requirement(("rsyslogd",), ("rsyslog",), _version("rsyslogd", "-v"), mends=True, unpacked=True),
    "syslog-ng": Requirement(
        ("syslog-ng",), ("syslog-ng-core",), _version("syslog-ng", "--version"), mends=True, unpacked=True
    ),
    "logrotate": Requirement(
        ("logrotate",), ("logrotate",), _version("logrotate", "--version"), mends=True, unpacked=True
    ),
    "groff": Requirement(("groff",), ("groff",), _version("groff", "--version"), mends=True),
    "twine": Requirement(
        probe=functools.partial(
            _ends_well, str(Path(__file__).parents[2] / ".venv-tools/bin/python"), "-m", "twine", "--version"
        ),
        advice="make test installs it, into .venv-tools",
    ),
    "pyright": Requirement(
        probe=functools.partial(_ends_well, sys.executable, "-m", "pyright", "--version"),
        advice="make test installs it; its first run fetches a package from npm's registry",
    ),
    "right-to-mount": Requirement(probe=_namespace, advice=_AS_ROOT),
    "mount": Requirement(("mount", "umount"), ("mount",), _mount, after=("right-to-mount",), advice=_AS_ROOT),
    "ext4": Requirement(
        ("mkfs.ext4", "losetup"),
        ("e2fsprogs", "mount"),
        functools.partial(_file_system, "ext4", 8, "-q", "-F"),
        after=("mount",),
        advice=_AS_ROOT,
    ),
    "xfs": Requirement(
        ("mkfs.xfs", "losetup"),
        ("xfsprogs", "mount"),
        functools.partial(_file_system, "xfs", 320, "-q", "-f"),
        after=("mount",),
        advice=_AS_ROOT,
    ),
    "overlay": Requirement(probe=_overlay, after=("mount",), advice=_AS_ROOT),
    "nbd": Requirement(
        ("nbdkit", "nbdfuse"), ("nbdkit", "libnbd-bin", "fuse3"), _fuse, after=("ext4",), advice=_AS_ROOT
    ),
    "netns": Requirement(("ip",), ("iproute2",), _network_namespace, after=("right-to-mount",), advice=_AS_ROOT),
    "ss": Requirement(("ss",), ("iproute2",)),
    "ip": Requirement(("ip",), ("iproute2",)),
    "ipv6": Requirement(probe=_ipv6, advice="enable IPv6 on the loopback interface"),
    "descriptors": Requirement(probe=_descriptors, advice=f"raise the hard limit: ulimit -Hn {DESCRIPTORS}"),
    "socket-filter": Requirement(probe=_socket_filter, advice=_AS_ROOT),
    "device": Requirement(probe=_device, advice=_AS_ROOT),
    "root": Requirement(probe=_root, advice="run the tests as root"),
}

_COREUTILS: Final = (
    "cat",
    "cp",
    "env",
    "false",
    "head",
    "mkdir",
    "mv",
    "rm",
    "seq",
    "sleep",
    "sort",
    "tail",
    "timeout",
)
_UTIL_LINUX: Final = ("kill", "prlimit", "setpriv", "unshare")
BASE_PROGRAMS: Final = frozenset((*_COREUTILS, *_UTIL_LINUX, "true", "truncate", "wc", "bash", "sh", "dpkg", "make"))
"""What every Debian has, and make, which runs the tests: tests run these without a mark."""


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names. Raises ValueError for a name that the registry does not have."""
    names = tuple(names)
    for name in names:
        if name not in REGISTRY:
            raise ValueError(f"unknown requirement {name!r}; tests/support/requirements.py has {', '.join(REGISTRY)}")
    return names


def absent_programs(name: str) -> list[str]:
    """Return the programs of a requirement that are not on PATH."""
    return [program for program in REGISTRY[name].programs if shutil.which(program) is None]


@functools.cache
def missing(name: str) -> Missing | None:
    """Probe a requirement, once a process; None when it is met."""
    need = REGISTRY[name]
    for first in need.after:
        if (found := missing(first)) is not None:
            return found
    absent = absent_programs(name)
    if absent:
        return Missing(name, f"{', '.join(absent)} not found", installable=True, advice=install_command([name]))
    reason = need.probe()
    if not reason:
        return None
    return Missing(name, reason, installable=need.mends, advice=install_command([name]) if need.mends else need.advice)


def all_missing(names: Iterable[str]) -> list[Missing]:
    """Probe these requirements; those that are not met."""
    return [found for found in map(missing, names) if found is not None]


def providing(program: str) -> str | None:
    """Return the requirement that brings a program of this name."""
    return next((name for name, need in REGISTRY.items() if program in need.programs), None)


# --- installing


def to_install() -> list[str]:
    """Return the requirements that a package would bring, also those that another missing package comes before."""
    return [name for name in REGISTRY if not _denied(name) and (absent_programs(name) or _mendable(name))]


def _mendable(name: str) -> bool:
    found = missing(name)
    return found is not None and found.name == name and found.installable


def _denied(name: str) -> bool:
    """Whether a right, or a feature of the kernel, is missing first: no package would help."""
    found = [missing(first) for first in REGISTRY[name].after]
    return any(lacking is not None and not lacking.installable for lacking in found) or any(
        map(_denied, REGISTRY[name].after)
    )


@functools.cache
def may_install() -> tuple[str, ...] | None:
    """Return what to put before apt-get to install packages without a password, or None where this user may not."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ()
    allowed = shutil.which("sudo") is not None and not _ends_well("sudo", "-n", "apt-get", "--version")
    return ("sudo", "-n") if allowed else None


def install_command(names: Iterable[str]) -> str:
    """Return the command that brings these requirements, to be typed by an administrator."""
    needs = [REGISTRY[name] for name in names]
    as_root = "" if os.geteuid() == 0 else "sudo " if shutil.which("sudo") else "as root: "
    if any(need.unpacked for need in needs):
        return f"{as_root}make programs"
    packages = dict.fromkeys(package for need in needs for package in need.packages)
    return f"{as_root}apt-get install {' '.join(packages)}"
