"""An unexpected error in the work for one client closes that client alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.connections import ask, is_reset
from tests.support.http import scrape
from tests.support.sockets import read_exactly, read_to_end
from tests.support.waits import wait_until
from tests.tailsrv.support import MIB, append, content, follow, serve

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import runpy, sys
sys.argv = sys.argv[3:]
{plant}
runpy.run_module("tailsrv", run_name="__main__")
"""

SEND = """
import tailsrv.{module} as module
whole = module.send_range
def send_range(subscriber, stream, offset, most):
    if subscriber.stop == 3_000_042:
        raise ZeroDivisionError("planted")
    return whole(subscriber, stream, offset, most)
module.send_range = send_range
"""

REQUEST = """
import tailsrv.header_reader as module
whole = module.parse
def parse(received, *, ended):
    if received.startswith(b"boom"):
        raise ZeroDivisionError("planted")
    return whole(received, ended=ended)
module.parse = parse
"""

LATE = """
from tailsrv.server import Broadcaster
def close_now(self, subscriber):
    raise ZeroDivisionError("planted")
Broadcaster._close_now = close_now
"""

LIVE = """
from tailsrv.subscriber import Subscriber
whole = Subscriber.__init__
def init(self, sock, peer, on_event):
    whole(self, sock, peer, on_event)
    def send(data):
        if data == b"boom":
            raise ZeroDivisionError("planted")
        return sock.send(data)
    if not hasattr(Subscriber, "unlucky"):
        Subscriber.unlucky = peer
        self.send = send
Subscriber.__init__ = init
"""

BACK = """
from tailsrv.fanout import Fanout
whole = Fanout._place
def place(self, subscriber):
    if subscriber.stop == 3_000_042 and subscriber.offset > 2_000_000:
        raise ZeroDivisionError("planted")
    whole(self, subscriber)
Fanout._place = place
"""

ENDING = """
import tailsrv.lingering_close as module
whole = module.LingeringClose.close_gracefully
def close_gracefully(self, sock):
    whole(self, sock)
    raise ZeroDivisionError("planted")
module.LingeringClose.close_gracefully = close_gracefully
"""


@pytest.mark.parametrize(
    ("plant", "header"),
    [
        pytest.param(SEND.format(module="fanout"), b"2900000 100042\n", id="catching up"),
        pytest.param(SEND.format(module="replay"), b"0 3000042\n", id="a replay"),
        pytest.param(REQUEST, b"boom\n", id="a header"),
        pytest.param(LATE, b"12", id="a header that is late"),
        pytest.param(LIVE, b"end\n", id="a live client"),
        pytest.param(BACK, b"0 3000042\n", id="the return from a replay"),
        pytest.param(ENDING, b"2999032 10\n", id="a graceful close"),
    ],
)
def test_an_unexpected_error_closes_one_client_and_is_logged_with_its_place(
    tmp_path: Path, plant: str, header: bytes
) -> None:
    path = tmp_path / "events.log"
    path.write_bytes(content(3 * MIB))
    options = ("--header-timeout", "0.5", "--metrics", "127.0.0.1:0")
    with (
        serve(path, *options, prefix=(sys.executable, "-c", RUN.format(plant=plant))) as daemon,
        ask(daemon, header) as victim,
        ask(daemon, b"-1\n") as other,
    ):
        assert read_exactly(other, 1) == path.read_bytes()[-1:]
        if plant is LIVE:
            wait_until(lambda: scrape(daemon)["tailsrv_clients"] == 2)
            append(path, b"boom")
            assert read_exactly(other, 4) == b"boom"
        is_reset(victim)
        entry = daemon.wait_log("unexpected error")
        assert "planted" in entry["error"]
        assert entry["at"]
        append(path, b"more")
        assert read_exactly(other, 4) == b"more"
        with follow(daemon, path) as late:
            append(path, b"!")
            assert late.recv(1) == other.recv(1) == b"!"
        assert scrape(daemon)["tailsrv_unexpected_errors_total"] == 1
        assert scrape(daemon)["tailsrv_clients"] >= 1
        assert daemon.stop() == 0
        assert read_to_end(other) == b""
