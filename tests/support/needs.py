"""The mark `@pytest.mark.needs("nc", "strace")`: a test whose requirements this machine does not meet is skipped.

This is the only way in which a test may be skipped: a skip for any other reason is a failure. So is a missing program
that this user may install (as root, or by sudo without a password), and, where CI is set, any missing program: a gate
that skips in silence tests nothing. A test that runs a registered program without the mark fails as well.

tests/conftest.py takes these functions over as its hooks.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.requirements import (
    BASE_PROGRAMS,
    REGISTRY,
    Missing,
    all_missing,
    extend_path,
    install_command,
    known,
    may_install,
    providing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from _pytest.terminal import TerminalReporter

_PROPERTY: Final = "missing"
_UNMARKED: Final = pytest.StashKey[list[str]]()
_WRAPPERS: Final = frozenset({"bash", "sh", "env", "prlimit", "setpriv", "timeout", "unshare"})
_COMMAND: Final = re.compile(r"(?:^|[|;&({`]|\bexec|\bthen|\bdo)\s*([\w./+-]+)")
"""The words of a shell's line that stand where a program's name does."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and see every program that a test starts."""
    config.addinivalue_line("markers", "needs(*names): skip where a requirement is missing; see requirements.py")
    extend_path()
    _Watch.install()


def names_of(item: pytest.Item) -> tuple[str, ...]:
    """The requirements of a test, its class and its module. Raises pytest.UsageError for a name that does not exist."""
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    try:
        return known(dict.fromkeys(names))
    except ValueError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse marks that name unknown requirements, before anything runs."""
    for item in items:
        names_of(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs something that is missing; fail where it could have been installed."""
    lacking = all_missing(names_of(item))
    if not lacking:
        return
    reason = "; ".join(map(str, lacking))
    installable = any(found.installable for found in lacking)
    if installable and may_install() is not None:
        pytest.fail(f"{reason} (this user may install it: `make test` does)", pytrace=False)
    if installable and os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set, so nothing is skipped for a missing program)", pytrace=False)
    item.user_properties += [
        (_PROPERTY, (found.name, found.reason, found.installable, found.advice)) for found in lacking
    ]
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Record the programs that this test starts without naming them in its marks."""
    names = names_of(item)
    _Watch.begin({program for name in names for program in _programs(name)})
    try:
        return (yield)
    finally:
        _Watch.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip without a requirement, and a program without a mark, into failures."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not _missing(report):
        report.outcome = "failed"
        report.longrepr = f"skipped without a requirement ({call.excinfo}): use pytest.mark.needs"
    if call.when == "teardown" and report.passed and (started := _Watch.started()):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} runs {', '.join(started)}: name it in pytest.mark.needs (requirements.py)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into a failure."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skips itself: use pytest.mark.needs"
    return report


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say at the end how many tests were skipped, why, and which command brings what is missing."""
    skipped = terminalreporter.stats.get("skipped", [])
    for line in summary([_missing(report) for report in skipped]):
        terminalreporter.write_line(line)


def summary(skips: list[list[Missing]]) -> list[str]:
    """The lines for skipped tests, each with all that it lacks; grouped by requirement."""
    if not skips:
        return []
    counts = Counter(found for lacking in skips for found in lacking)
    lines = [f"{len(skips)} tests skipped, each for something that this machine does not have:"]
    for found, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].name)):
        lines.append(f"  {count:>3} need {found.name}: {found.reason}; {found.advice}")
    programs = [found.name for found in counts if found.installable]
    if programs:
        packages = sorted({package for name in programs for package in REGISTRY[name].packages})
        as_root = install_command([]).partition("apt-get")[0]
        lines.append(f"All missing programs: {as_root}make programs   ({', '.join(packages)})")
    return lines


def _missing(report: pytest.TestReport) -> list[Missing]:
    return [Missing(*value) for name, value in report.user_properties if name == _PROPERTY]  # type: ignore[misc] # ours


def _programs(name: str) -> Iterable[str]:
    """The programs that a requirement allows: its own, and those of the requirements before it."""
    yield from REGISTRY[name].programs
    for first in REGISTRY[name].after:
        yield from _programs(first)


class _Watch:
    """Sees which programs this process starts, through `subprocess.Popen`, by which asyncio starts them as well."""

    _start: Callable[..., None] | None = None
    _allowed: frozenset[str] | None = None
    _seen: dict[str, None]

    @classmethod
    def install(cls) -> None:
        if cls._start is None:
            start = cls._start = subprocess.Popen.__init__

            def watched(self: subprocess.Popen[Any], args: Any, *more: Any, **options: Any) -> None:
                cls._look(args, options)
                start(self, args, *more, **options)

            subprocess.Popen.__init__ = watched  # type: ignore[method-assign] # audit hooks slow every open() down

    @classmethod
    def begin(cls, allowed: Iterable[str]) -> None:
        cls._allowed, cls._seen = frozenset(allowed), {}

    @classmethod
    def end(cls) -> None:
        cls._allowed = None

    @classmethod
    def started(cls) -> list[str]:
        """The programs that the current test has started without being allowed to."""
        return list(cls._seen)

    @classmethod
    def _look(cls, args: Any, options: Mapping[str, Any]) -> None:
        if cls._allowed is None:
            return
        words = [os.fsdecode(word) for word in ([args] if isinstance(args, str | bytes | os.PathLike) else args)]
        for program in programs_in(["sh", *words] if options.get("shell") else words):
            if program not in cls._allowed and (providing(program) or program not in BASE_PROGRAMS):
                cls._seen[program] = None


def programs_in(words: list[str]) -> list[str]:
    """The programs that a command starts by name, also behind a wrapper and within a shell's line.

    A path is ours (a script, a compiled tool) or the interpreter's; what is neither registered nor in every Debian is
    only looked at in the first place, since the other words may be anything.
    """
    first = words[0]
    found = [] if "/" in first else [first]
    if os.path.basename(first) in _WRAPPERS:
        for word in words[1:]:
            found += [name for name in dict.fromkeys((word, *_COMMAND.findall(word))) if providing(name) is not None]
    return found
