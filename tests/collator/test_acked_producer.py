"""The acknowledged port: what a line says is so, whatever happens to whom."""

from __future__ import annotations

import random
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.collators import ACK, Producer, collate, raw, wait_committed
from tests.support.sockets import read_to_end, reset

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import Daemon


@pytest.fixture(params=["always", "never", "interval:5"])
def sync(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_producer_receives_its_position_and_continues_there(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    for life in range(3):
        with collate(path, "--sync", sync) as collator:
            for turn in range(2):
                number = 2 * life + turn
                producer = Producer(collator, "web-1")
                assert producer.told()[0] == 6 * number
                producer.send(b"ln %02d\n" % number)
                assert producer.until(6 * number + 6)[-1] == (6 * number + 6, 6 * number + 6)
                producer.close()
            assert collator.stop() == 0
    assert path.read_bytes() == b"".join(b"ln %02d\n" % number for number in range(6))


def test_each_acknowledgement_names_the_place_of_the_bytes_since_the_one_before(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    streams = {
        who: b"".join(
            b"%d:%d:" % (who, n) + b"x" * random.Random(n).choice((0, 50, 30_000)) + b"\n" for n in range(150)
        )
        for who in range(6)
    }
    heard: dict[int, list[tuple[int, int]]] = {}

    def produce(who: int, collator: Daemon) -> None:
        producer = Producer(collator, f"p{who}")
        assert producer.told() == (0, 0)
        data = streams[who]
        sender = threading.Thread(target=producer.send, args=(data,))
        sender.start()
        heard[who] = producer.until(len(data))
        sender.join()
        producer.close()

    with collate(path, "--sync", sync) as collator:
        threads = [threading.Thread(target=produce, args=(who, collator)) for who in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert collator.stop() == 0
    stored = path.read_bytes()
    assert len(stored) == sum(map(len, streams.values()))
    for who, lines in heard.items():
        before = 0
        for acked, at in lines:
            assert acked > before
            assert stored[at - (acked - before) : at] == streams[who][before:acked]
            before = acked


def test_after_a_half_close_the_last_line_comes_once_more_and_then_the_end(tmp_path: Path, sync: str) -> None:
    with collate(tmp_path / "stream", "--sync", sync) as collator:
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        producer.send(b"one\ntwo\nincomplete")
        producer.sock.shutdown(socket.SHUT_WR)
        lines = producer.rest().decode().splitlines()
        assert lines[-1] == lines[-2] == "8 8"
        silent = Producer(collator, "b")
        silent.sock.shutdown(socket.SHUT_WR)
        assert silent.rest() == b"0 0\n0 0\n"
        assert collator.stop() == 0
    assert (tmp_path / "stream").read_bytes() == b"one\ntwo\n"


def test_a_reset_withdraws_no_whole_message(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        producer.send(b"one\nhalf")
        assert producer.told() == (4, 4)
        reset(producer.sock)
        again = Producer(collator, "a")
        assert again.told() == (4, 4)
        again.send(b"half\n")
        assert again.told() == (9, 9)
        assert collator.stop() == 0
    assert path.read_bytes() == b"one\nhalf\n"


def test_a_second_connection_with_a_name_closes_the_first_before_it_receives_a_line(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", sync) as collator:
        first = Producer(collator, "same")
        assert first.told() == (0, 0)
        told = 0
        for _ in range(20):
            first.send(b"a" * 999 + b"\n" + b"b" * 49_999 + b"\nunfinished")
            second = Producer(collator, "same")
            acked, at = second.told()
            # All that the first delivered is counted, and nothing of it can come any more.
            assert acked >= told
            assert (acked - told) in {0, 1000, 51_000}
            try:
                rest = first.rest()
            except ConnectionResetError:
                rest = b""
            assert not rest or int(rest.split()[-2]) == acked
            assert collator.events()[-1]["event"] in {"producer superseded", "incomplete message dropped"}
            first, told = second, acked
            assert path.stat().st_size >= at
        wait_committed(path, told)
        assert collator.stop() == 0
    assert path.stat().st_size == told


@pytest.mark.parametrize("name", ["a b", "x" * 129, "naïve", "a/b"])
def test_an_invalid_name_is_answered_with_the_reason(tmp_path: Path, name: str) -> None:
    with collate(tmp_path / "stream") as collator:
        producer = Producer(collator, name)
        answer = producer.rest()
        assert answer.startswith((b"error: invalid name", b"error: name line too long"))
        assert answer.endswith(b"\n")
        assert Producer(collator, "good").told() == (0, 0)


@pytest.mark.parametrize("framing", ["newline", "u32be"])
def test_an_impossible_message_is_answered_with_the_reason_after_the_ones_before_it_are_acknowledged(
    tmp_path: Path, sync: str, framing: str
) -> None:
    path = tmp_path / "stream"
    good = b"good\n" if framing == "newline" else b"\0\0\0\1g"
    bad = b"x" * 3_000_000 if framing == "newline" else b"\xff" * 3_000_000
    with collate(path, "--sync", sync, "--framing", framing, "--max-message-bytes", "1000") as collator:
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        sender = threading.Thread(target=producer.send, args=(good + bad,))
        sender.start()
        assert producer.told() == (5, 5)
        assert producer.line().startswith(b"error: a")
        producer.sock.shutdown(socket.SHUT_RD)
        sender.join()
        producer.close()
        assert Producer(collator, "a").told() == (5, 5)
        assert collator.stop() == 0
    assert path.read_bytes() == good


def test_acknowledgements_of_anonymous_producers_count_their_connection_alone(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        for turn in range(1, 4):
            producer = Producer(collator)
            producer.send(b"hello\n")
            assert producer.told() == (0, 0)
            assert producer.told() == (6, 6 * turn)
            producer.close()
        assert collator.stop() == 0


def test_both_ports_share_one_file_and_one_order(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path) as collator:
        raw(collator, b"raw\n")
        wait_committed(path, 4)
        producer = Producer(collator, "a")
        assert producer.told() == (0, 0)
        producer.send(b"acked\n")
        assert producer.told() == (6, 10)
        raw(collator, b"more\n")
        wait_committed(path, 15)
        producer.send(b"again\n")
        assert producer.told() == (12, 21)
        assert collator.stop() == 0
    assert path.read_bytes() == b"raw\nacked\nmore\nagain\n"


def send_for_ever(sock: socket.socket) -> None:
    for _ in range(20_000):  # one at a time, so that there is a line to hear for each
        sock.send(b"\n")
    while True:
        sock.send(b"\n" * 65_536)


def test_a_producer_that_does_not_read_is_not_read_from_and_delays_no_other_one(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with collate(path, "--sync", "never") as collator, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.connect(("127.0.0.1", collator.port(ACK)))
        deaf.sendall(b"\n")
        deaf.settimeout(1)
        other = Producer(collator, "other")
        assert other.told() == (0, 0)
        memory = collator.memory()
        with pytest.raises(TimeoutError):
            send_for_ever(deaf)
        other.send(b"fine\n")
        assert other.told()[0] == 5
        assert collator.memory() < memory + (4 << 20)
        deaf.settimeout(30)
        deaf.shutdown(socket.SHUT_WR)
        heard = read_to_end(deaf).splitlines()
        assert heard[0] == b"0 0"
        assert heard[-1] == heard[-2]
        assert int(heard[-1].split()[0]) >= 20_000
        assert collator.stop() == 0


def test_two_thousand_producers_with_long_names_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    names = [f"{number:-<128}" for number in range(2000)]
    with collate(path) as collator:
        producers = [Producer(collator, name) for name in names]
        for producer in producers:
            assert producer.told() == (0, 0)
        for turn in (1, 2, 3):
            for producer in producers:
                producer.send(b"hello\n")
            for producer in producers:
                producer.until(6 * turn)
        for producer in producers:
            producer.close()
        assert collator.stop() == 0
    with collate(path) as collator:
        assert collator.wait_log("recovered")["producers"] == 2000
        for name in names[::100]:
            assert Producer(collator, name).told()[0] == 18
        assert collator.stop() == 0
    assert path.stat().st_size == 2000 * 18
