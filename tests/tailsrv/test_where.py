"""The answer to `where` is one line: the first byte and the end of the stream."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tailsrv_runtime.commit_mark import MarkWriter
from tests.support.connections import ask
from tests.support.http import scrape
from tests.support.sockets import read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import append, serve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.log"
    path.write_bytes(b"x" * 100)
    return path


@pytest.mark.parametrize("header", [b"where\n", b"where\r\n", b" where \t\n", b"where\nand bytes after the header\n"])
def test_the_answer_is_first_byte_and_end_and_then_the_connection_ends(path: Path, header: bytes) -> None:
    with serve(path, "--metrics", "127.0.0.1:0") as daemon:
        with ask(daemon, header) as client:
            assert read_to_end(client) == b"0 100\n"
        append(path, b"y" * 23)
        with ask(daemon, b"where\n") as client:
            assert read_to_end(client) == b"0 123\n", "the present end, also before the inotify event"
        wait_until(lambda: scrape(daemon)["tailsrv_clients"] == 0)
        assert scrape(daemon)["tailsrv_bad_headers_total"] == 0


@pytest.mark.parametrize("header", [b"where 5\n", b"where now\n", b"nowhere\n", b"wher\n", b"where0\n", b"Where\n"])
def test_a_header_that_only_resembles_where_is_a_bad_header(path: Path, header: bytes) -> None:
    with serve(path, "--metrics", "127.0.0.1:0") as daemon:
        with ask(daemon, header) as client:
            assert read_to_end(client) == b""
        wait_until(lambda: scrape(daemon)["tailsrv_bad_headers_total"] == 1)


def test_the_end_in_the_answer_is_the_commit_mark(path: Path) -> None:
    mark = MarkWriter(f"{path}.commit", 40)
    with serve(path) as daemon:
        with ask(daemon, b"where\n") as client:
            assert read_to_end(client) == b"0 40\n"
        mark.move(90)
        with ask(daemon, b"where\n") as client:
            assert read_to_end(client) == b"0 90\n"
    mark.close()


def test_a_file_that_does_not_exist_has_no_bytes(tmp_path: Path) -> None:
    with serve(tmp_path / "later.log") as daemon, ask(daemon, b"where\n") as client:
        assert read_to_end(client) == b"0 0\n"


def test_where_is_answered_over_a_unix_socket_and_with_workers(path: Path, tmp_path: Path) -> None:
    with serve(path, "--listen", f"unix:{tmp_path}/socket") as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        client.sendall(b"where\n")
        assert read_to_end(client) == b"0 100\n"
    with serve(path, "--workers", "2") as daemon:
        for _ in range(8):
            with ask(daemon, b"where\n") as client:
                assert read_to_end(client) == b"0 100\n"


def test_a_fin_ends_the_header_and_clients_that_disconnect_do_not_affect_others(path: Path) -> None:
    with serve(path) as daemon:
        with ask(daemon, b"where") as client:
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b"0 100\n"
        for _ in range(20):
            ask(daemon, b"where\n").close()
        with ask(daemon, b"where\n") as client:
            assert read_to_end(client) == b"0 100\n"


@pytest.mark.needs("nc")
def test_netcat_gets_the_answer(path: Path) -> None:
    with serve(path) as daemon:
        host, port = daemon.addresses[0].rsplit(":", 1)
        said = subprocess.run(["nc", host, port], input=b"where\n", capture_output=True, timeout=20, check=True)
        assert said.stdout == b"0 100\n"
