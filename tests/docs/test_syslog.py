"""docs/syslog.md: its configurations ship lines as they are, and its traps do what the page says."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import Daemon
from tests.support.streams import append, started
from tests.support.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "syslog.md").read_text()
LINES = [f"line {number} of the application" for number in range(500)]


class Shipping:
    """A collator, a log file, and a folder for a shipper that reads the one and writes to the other."""

    def __init__(self, folder: Path, collator: Daemon) -> None:
        self.folder = folder
        self.source = folder / "app.log"
        self.stream = folder / "stream"
        self.port = collator.port()

    def configuration(self, language: str, *changes: tuple[str, str], head: str = "") -> Path:
        """The page's configuration with this test's address and paths, and changes that make it a trap."""
        found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        assert found is not None
        text = head + found[1]
        places = (
            ('"fileserver"', '"127.0.0.1"'),
            ("4322", str(self.port)),
            ("/var/log/app.log", str(self.source)),
            ("/var/lib/syslog-ng", str(self.folder)),
        )
        for old, new in places:
            text = text.replace(old, new)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.folder / "conf"
        path.write_text(text)
        return path

    def arrived(self) -> list[str]:
        """The messages in the stream."""
        return self.stream.read_text().splitlines() if self.stream.exists() else []

    def write(self) -> None:
        """The application logs its lines."""
        append(self.source, "".join(f"{line}\n" for line in LINES).encode())


@pytest.fixture
def shipping(tmp_path: Path) -> Iterator[Shipping]:
    (tmp_path / "app.log").touch()
    with Daemon("tailsrv-collate", tmp_path / "stream", "--listen", "127.0.0.1:0", "--sync", "never") as collator:
        yield Shipping(tmp_path, collator)


def rsyslogd(shipping: Shipping, configuration: Path) -> list[str]:
    return ["rsyslogd", "-n", "-f", str(configuration), "-i", str(shipping.folder / "pid")]


def syslog_ng(shipping: Shipping, configuration: Path) -> list[str]:
    places = [f"--{name}={shipping.folder / name}" for name in ("persist-file", "pidfile", "control")]
    return ["syslog-ng", "-F", "--no-caps", "-f", str(configuration), *places]


def work_folder(shipping: Shipping) -> str:
    return f'global(workDirectory="{shipping.folder}")\n'


@pytest.mark.needs("rsyslogd")
def test_rsyslog_ships_a_file_line_by_line(shipping: Shipping) -> None:
    with started(rsyslogd(shipping, shipping.configuration("rsyslog", head=work_folder(shipping)))):
        shipping.write()
        wait_until(lambda: len(shipping.arrived()) >= len(LINES), "all lines have arrived")
    assert shipping.arrived() == LINES


@pytest.mark.needs("rsyslogd")
def test_rsyslog_with_octet_counting_puts_the_length_before_each_line(shipping: Shipping) -> None:
    octets = ('protocol="tcp"', 'protocol="tcp" TCP_Framing="octet-counted"')
    configuration = shipping.configuration("rsyslog", octets, head=work_folder(shipping))
    with started(rsyslogd(shipping, configuration)):
        shipping.write()
        wait_until(lambda: len(shipping.arrived()) >= len(LINES), "all lines have arrived")
    assert shipping.arrived()[0] == f"{len(LINES[0]) + 1} {LINES[0]}"


@pytest.mark.needs("rsyslogd")
def test_rsyslog_without_a_template_puts_a_header_before_each_line(shipping: Shipping) -> None:
    configuration = shipping.configuration("rsyslog", (' template="payload"', ""), head=work_folder(shipping))
    with started(rsyslogd(shipping, configuration)):
        shipping.write()
        wait_until(lambda: len(shipping.arrived()) >= len(LINES), "all lines have arrived")
    assert re.fullmatch(rf"<\d+>\w+ +\d+ [\d:]+ \S+ app ?{LINES[0]}", shipping.arrived()[0])


@pytest.mark.needs("rsyslogd")
def test_rsyslog_ships_what_the_machine_logs_as_a_log_file_has_it(shipping: Shipping) -> None:
    log = shipping.folder / "log"
    head = work_folder(shipping) + (
        f'module(load="imuxsock" SysSock.Use="off")\ninput(type="imuxsock" Socket="{log}" CreatePath="on")\n'
    )
    with started(rsyslogd(shipping, shipping.configuration("rsyslog-all", head=head))):
        wait_until(log.exists, "rsyslog listens")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
            program.connect(str(log))
            program.send(b"<13>Nov 23 09:00:00 shop: two\nlines")
        wait_until(lambda: any("shop" in line for line in shipping.arrived()), "the line has arrived")
    found = next(line for line in shipping.arrived() if "shop" in line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\S+ \S+ shop: two#012lines", found)


@pytest.mark.needs("syslog-ng")
def test_syslog_ng_ships_a_file_line_by_line(shipping: Shipping) -> None:
    with started(syslog_ng(shipping, shipping.configuration("syslog-ng"))):
        shipping.write()
        wait_until(lambda: len(shipping.arrived()) >= len(LINES), "all lines have arrived")
    assert shipping.arrived() == LINES


@pytest.mark.needs("syslog-ng")
def test_syslog_ngs_syslog_destination_counts_octets(shipping: Shipping) -> None:
    driver = ("network(", "syslog(")
    with started(syslog_ng(shipping, shipping.configuration("syslog-ng", driver))):
        shipping.write()
        wait_until(lambda: len(shipping.arrived()) >= 1, "a line has arrived")
    assert re.match(r"\d+ <\d+>1 \d{4}-", shipping.arrived()[0])
