"""nginx writes a log that tailsrv serves; rsyslog and nc ship into the collator. Nothing is simulated."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from typing import IO, TYPE_CHECKING

import pytest

from tests.support.daemons import Daemon
from tests.support.sockets import free_port, read_exactly
from tests.support.waits import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONSUMERS = 20
REQUESTS = 4000
LINES_EACH = 3000


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended with the block."""
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()  # `with` waits for it and closes its pipe


@pytest.mark.needs("nginx")
def test_nginx_writes_and_twenty_consumers_read_byte_for_byte(tmp_path: Path) -> None:
    """Consumers that start at different offsets get exactly what the file holds from there, while it is written."""
    log, port = tmp_path / "access.log", free_port()
    (tmp_path / "nginx.conf").write_text(
        f"""
        daemon off; worker_processes 2; error_log stderr warn; pid {tmp_path}/pid;
        events {{ worker_connections 256; }}
        http {{
            client_body_temp_path {tmp_path}/a; proxy_temp_path {tmp_path}/b; fastcgi_temp_path {tmp_path}/c;
            uwsgi_temp_path {tmp_path}/d; scgi_temp_path {tmp_path}/e;
            access_log {log};
            server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }}
        }}
        """
    )
    with (
        running("nginx", "-c", tmp_path / "nginx.conf", "-p", tmp_path),
        Daemon("tailsrv", log, "--listen", "127.0.0.1:0") as tailsrv,
        contextlib.ExitStack() as stack,
    ):
        wait_until(lambda: _answers(port), "nginx answers")
        load = [threading.Thread(target=_request, args=(port, REQUESTS // 4)) for _ in range(4)]
        for thread in load:
            thread.start()
        consumers = []
        for number in range(CONSUMERS):
            # One after the other while the log grows, each somewhere else in it.
            wait_until(lambda least=number * 1000: log.stat().st_size > least, "the log grows")  # type: ignore[misc] # mypy can't infer a default
            start = log.stat().st_size * number // CONSUMERS
            consumer = stack.enter_context(tailsrv.connect())
            consumer.sendall(b"%d\n" % start)
            consumers.append((start, consumer))
        for thread in load:
            thread.join()
        wait_until(lambda: log.read_bytes().count(b"\n") >= REQUESTS + 1, "nginx has written all")
        written = log.read_bytes()
        for start, consumer in consumers:
            assert read_exactly(consumer, len(written) - start) == written[start:]


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as http:
            http.sendall(b"GET /first HTTP/1.0\r\n\r\n")
            return http.recv(1) != b""
    except OSError:
        return False


def _request(port: int, count: int) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as http, http.makefile("rb") as stream:
        for number in range(count):
            http.sendall(b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" % number)
            while stream.readline() != b"\r\n":
                pass
            stream.read(len("hello\n"))
            if number % 1000 == 999:  # nginx closes after keepalive_requests
                http.close()
                _request(port, count - number - 1)
                return


@pytest.mark.needs("rsyslogd", "nc")
def test_rsyslog_and_nc_ship_at_once_and_every_line_is_stored_whole(tmp_path: Path) -> None:
    """Two real shippers, many connections: no line torn, mixed, lost or doubled."""
    stream, source = tmp_path / "stream", tmp_path / "application.log"
    source.touch()
    with Daemon("tailsrv-collate", stream, "--listen", "127.0.0.1:0", "--sync", "never") as collator:
        port = collator.port()
        (tmp_path / "rsyslog.conf").write_text(
            f"""
            global(workDirectory="{tmp_path}")
            module(load="imfile" mode="inotify")
            template(name="raw" type="string" string="rsyslog %msg%\\n")
            input(type="imfile" file="{source}" tag="app" ruleset="ship")
            ruleset(name="ship") {{
                action(type="omfwd" target="127.0.0.1" port="{port}" protocol="tcp" template="raw"
                       queue.type="LinkedList" action.resumeRetryCount="-1" action.resumeInterval="1")
            }}
            """
        )
        with (
            running("rsyslogd", "-n", "-f", tmp_path / "rsyslog.conf", "-i", tmp_path / "rsyslog.pid"),
            contextlib.ExitStack() as stack,
        ):
            netcats = [stack.enter_context(_netcat(port, name)) for name in ("nc-a", "nc-b")]
            with source.open("w") as file:
                for number in range(LINES_EACH):
                    file.write(f"{number:05} {'x' * (number % 200)}\n")
                    if number % 500 == 0:
                        file.flush()
                        time.sleep(0.01)  # a source that writes in bursts, as real ones do
            for netcat in netcats:
                assert netcat.wait(PATIENCE) == 0
            expected = 3 * LINES_EACH
            wait_until(lambda: stream.exists() and stream.read_bytes().count(b"\n") >= expected, "all lines came")
    lines = stream.read_text().splitlines()
    for name in ("rsyslog", "nc-a", "nc-b"):
        own = [line for line in lines if line.startswith(f"{name} ")]
        assert own == [f"{name} {number:05} {'x' * (number % 200)}" for number in range(LINES_EACH)]
    assert len(lines) == expected


@contextlib.contextmanager
def _netcat(port: int, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """nc, which a thread gives lines to."""

    def feed(pipe: IO[bytes]) -> None:
        with pipe:
            for number in range(LINES_EACH):
                pipe.write(f"{name} {number:05} {'x' * (number % 200)}\n".encode())

    with subprocess.Popen(["nc", "-N", "127.0.0.1", str(port)], stdin=subprocess.PIPE) as netcat:
        assert netcat.stdin is not None
        feeder = threading.Thread(target=feed, args=(netcat.stdin,))
        feeder.start()
        try:
            yield netcat
        finally:
            feeder.join()
