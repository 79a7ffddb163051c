"""Promises of the spool: what was accepted is there again, or there is an error that says where the file is damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import struct
import threading
import zlib
from typing import TYPE_CHECKING

import pytest

from tailsrv_client.errors import CheckpointError
from tailsrv_client.protocol.outbox import Outbox
from tailsrv_client.spool import COMPACT_BYTES, Spool
from tailsrv_client.spoolfile import CHUNK_BYTES, RECORD, decode_header, encode_header, encode_record
from tailsrv_formats.framing import FRAMINGS, make_framing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEWLINE = make_framing("newline")


@pytest.fixture(autouse=True)
def warnings() -> Iterator[None]:
    """Other tests of this folder silence the library's logger."""
    logger = logging.getLogger("tailsrv_client")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)


@contextlib.contextmanager
def opened(path: Path, framing: str = "newline", name: str = "n") -> Iterator[Spool]:
    """A spool that ends as by a kill, so that the file is left as it is."""
    spool = Spool(str(path), name, make_framing(framing))
    try:
        yield spool
    finally:
        spool._release()


def everything(spool: Spool) -> bytes:
    found = b""
    while data := bytes(spool.read(spool.start + len(found), 1 << 20)):
        found += data
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    """Golden bytes."""
    assert encode_header("n", "newline", 0xABC, 5) == (
        b"tailsrv-spool 2 n newline 00000abc 9b67352b\n" + 2 * b"00000000000000000005 8b072b31\n"
    )
    assert decode_header(encode_header("n", "u16be", 7, None))[1:5] == ("n", "u16be", 7, None)
    assert encode_record(b"one\n", 0xABC, 104) == bytes.fromhex("00000004 f817a89f b34c7276") + b"one\n"
    with opened(tmp_path / "spool") as spool:
        spool.append(b"one\n")
        content = (tmp_path / "spool").read_bytes()
    head = decode_header(content)
    assert content[head.size :] == encode_record(b"one\n", head.seed, head.size)


def test_a_spool_is_one_producers_and_one_process(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with opened(path), pytest.raises(CheckpointError, match="spool"):
        Spool(str(path), "n", NEWLINE)
    with pytest.raises(CheckpointError, match="of 'n'"):
        Spool(str(path), "other", NEWLINE)
    with pytest.raises(CheckpointError, match="nul"):
        Spool(str(path), "n", make_framing("nul"))
    with opened(path):
        pass


@pytest.mark.parametrize("framing", FRAMINGS)
def test_what_was_kept_is_there_again_whatever_limit_the_next_one_has(tmp_path: Path, framing: str) -> None:
    """One message of 2 MiB among small ones; u16be can't carry it."""
    generous, path = make_framing(framing, 4 << 20), tmp_path / "spool"
    sizes = [50] * 10 + [60_000 if framing == "u16be" else 2 << 20] + [50] * 100
    kept = b"".join(generous.wrap(b"x" * size) for size in sizes)
    spool = Spool(str(path), "n", generous)
    for size in sizes:
        spool.append(generous.wrap(b"x" * size))
    spool.close()
    for limit in (1 << 20, 60):
        spool = Spool(str(path), "n", make_framing(framing, limit))
        assert everything(spool) == kept
        spool.close()


@pytest.mark.parametrize("bases", [(None,), (700,), (None, 700)], ids=["unknown", "known", "anchored later"])
def test_a_flipped_bit_is_an_error_that_names_file_and_byte_or_does_no_harm(
    tmp_path: Path, bases: tuple[int | None, ...]
) -> None:
    """Every bit of a small spool: everything is there, or a `CheckpointError`, and the file is as it was."""
    path = tmp_path / "spool"
    messages = [b"one\n", b"", b"three\nfour\n", b"x" * 40 + b"\n"]
    with opened(path) as spool:
        for base in bases:
            if base is not None:
                spool.anchor(base)
                spool.tidy()
            for message in messages:
                if message:
                    spool.append(message)
    good, kept = path.read_bytes(), b"".join(messages) * len(bases)
    refused = 0
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            with opened(path) as spool:
                found = everything(spool), spool.base
        except CheckpointError as error:
            found, said = None, str(error)
        else:
            said = ""
        assert found in (None, (kept, bases[-1])), f"bit {bit}"
        if found is None:
            refused += 1
            assert str(path) in said
            assert path.read_bytes() == bad
    assert refused >= 8 * (len(kept) + 30)


def test_damage_in_the_middle_says_which_byte_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.append(b"fine\n")
        at = path.stat().st_size
        spool.append(b"damaged\n")
        spool.append(b"after\n")
    data = bytearray(path.read_bytes())
    data[at + RECORD.size] ^= 1
    path.write_bytes(data)
    before = descriptors()
    with pytest.raises(CheckpointError, match=f"{path} is damaged at byte {at}: .*truncate -s {at} {path}"):
        Spool(str(path), "n", NEWLINE)
    assert descriptors() == before, "neither the file nor its lock is left open"
    assert path.read_bytes() == data
    os.truncate(path, at)  # the advice
    with opened(path) as spool:
        assert everything(spool) == b"fine\n"


def test_however_the_last_append_is_torn_all_before_it_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut at every byte; what comes next goes where the torn record was."""
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.append(b"one\n")
        begin = path.stat().st_size
        spool.append(b"torn\n" * 3)
    good = path.read_bytes()
    for size in range(begin, len(good)):
        path.write_bytes(good[:size])
        caplog.clear()
        with opened(path) as spool:
            assert everything(spool) == b"one\n"
            assert path.stat().st_size == size, "nothing is cut off before there is something better"
            assert ("cut off by a crash" in caplog.text) == (size > begin)
            spool.append(b"2\n")
        with opened(path) as spool:
            assert everything(spool) == b"one\n2\n"


def test_zeros_at_the_end_are_what_a_power_cut_leaves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.append(b"one\n")
    with path.open("ab") as file:
        file.write(bytes(5000))
    with opened(path) as spool:
        assert everything(spool) == b"one\n"
    assert "power cut" in caplog.text


def test_a_claimed_length_allocates_nothing(tmp_path: Path) -> None:
    """A record of 4 GB whose head is right, in a file of some bytes: a torn one."""
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.append(b"one\n")
    seed, size = decode_header(path.read_bytes()).seed, path.stat().st_size
    head = struct.pack(">II", 0xFFFFFFF0, 0)
    with path.open("ab") as file:
        file.write(head + zlib.crc32(head, seed + size & 0xFFFFFFFF).to_bytes(4) + b"some")
    with opened(path) as spool:
        assert everything(spool) == b"one\n"


def test_records_of_another_file_or_place_are_none(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        with opened(path) as spool:
            spool.append(b"same\n")
            spool.append(b"same\n")
    begin = decode_header(one.read_bytes()).size
    size = (one.stat().st_size - begin) // 2
    swapped = one.read_bytes()[:begin] + two.read_bytes()[begin:]
    repeated = one.read_bytes() + one.read_bytes()[begin : begin + size]
    for content in (swapped, repeated):
        one.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged at byte"):
            Spool(str(one), "n", NEWLINE)


def test_messages_that_look_like_a_spool_are_messages(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    framing = make_framing("u32be")
    with opened(path, "u32be") as spool:
        spool.append(framing.wrap(b"x"))
        inner = path.read_bytes()
        for _ in range(3):
            spool.append(framing.wrap(inner))
    with opened(path, "u32be") as spool:
        assert everything(spool) == framing.wrap(b"x") + 3 * framing.wrap(inner)


def test_reading_begins_anywhere_and_gives_at_most_what_was_asked_for(tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = b""
    with opened(tmp_path / "spool") as spool:
        for _ in range(3000):
            data = rng.randbytes(rng.choice((1, 40, 300, 3000))).replace(b"\n", b"x") + b"\n"
            spool.append(data)
            whole += data
        spool.append(b"y" * (3 * CHUNK_BYTES) + b"\n")
        whole += b"y" * (3 * CHUNK_BYTES) + b"\n"
        for _ in range(300):
            position, limit = rng.randrange(len(whole)), rng.choice((1, 100, 1 << 18))
            data = bytes(spool.read(position, limit))
            assert 0 < len(data) <= limit
            assert whole.startswith(data, position)
        assert spool.read(len(whole), 10) == b""
        assert everything(spool) == whole


def test_it_remembers_few_places_for_many_messages(tmp_path: Path) -> None:
    with opened(tmp_path / "spool") as spool:
        for _ in range(100_000):
            spool.append(b"x\n")
        assert spool._file is not None
        assert len(spool._file._marks) < 50
        assert spool.read(150_001, 3) == b"\nx\n"


# --- the base


def test_the_base_is_durable_before_anything_is_sent_under_it_or_it_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a disk that failed while the collator's answer was written down: a kill sends nothing twice."""
    path = tmp_path / "spool"
    with opened(path) as spool:
        outbox = Outbox(spool)
        outbox.put(b"one\n", None)

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", fail)
        outbox.anchor(700)
        with pytest.raises(OSError, match=str(path)):
            outbox.tidy()
        assert not outbox.anchored
        monkeypatch.undo()
        outbox.anchor(800)
        outbox.tidy()
        assert outbox.anchored
    with opened(path) as spool:
        assert (spool.base, everything(spool)) == (800, b"one\n")


def test_a_crash_at_any_byte_of_the_base_leaves_it_unknown_or_right(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.append(b"one\n")
        old = path.read_bytes()
        spool.anchor(700)
        spool.tidy()
        new = path.read_bytes()
    second = old.index(b"-" * 20) + 30
    for order in (range(second, second + 30), range(second - 30, second)):
        for byte in order:
            old = old[:byte] + new[byte : byte + 1] + old[byte + 1 :]
            path.write_bytes(old)
            with opened(path) as spool:
                assert spool.base in ((None, 700) if order.start == second else (700,))
                assert everything(spool) == b"one\n"


# --- space


def fill(spool: Spool, size: int) -> None:
    for _ in range(size // 1000):
        spool.append(b"x" * 999 + b"\n")


def test_a_spool_gives_back_the_space_of_what_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), "n", NEWLINE)
    spool.anchor(0)
    fill(spool, COMPACT_BYTES + 1000)
    spool.append(b"left\nand that\n")
    spool.discard(spool.end - 9)  # within what one append brought
    spool.tidy()
    assert path.stat().st_size < 200
    assert everything(spool) == b"and that\n"
    end = spool.end
    spool.close()
    with opened(path) as again:
        assert (again.base, everything(again)) == (end - 9, b"and that\n")


def test_what_is_acknowledged_leaves_the_file_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), "n", NEWLINE)
    spool.anchor(5)
    spool.tidy()
    spool.append(b"one\n")
    spool.append(b"two\n")
    spool.discard(4)
    spool.close()
    assert b"one" not in path.read_bytes()
    with opened(path) as spool:
        assert (spool.base, everything(spool)) == (9, b"two\n")


def test_appends_go_on_while_the_file_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewriting is held up in its sync; an append meanwhile returns, and is in the new file."""
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.anchor(0)
        spool.tidy()
        fill(spool, COMPACT_BYTES + 1000)
        spool.discard(spool.end)
        syncing, resume = threading.Event(), threading.Event()
        sync = os.fdatasync

        def slow(fd: int) -> None:
            syncing.set()
            assert resume.wait(30)
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", slow)
        thread = threading.Thread(target=spool.tidy)
        thread.start()
        assert syncing.wait(30)
        kept = b""
        for number in range(2000):
            spool.append(b"meanwhile %d\n" % number)
            kept += b"meanwhile %d\n" % number
        assert spool.read(spool.start, 12) == kept[:12]
        resume.set()
        thread.join(30)
        spool.append(b"later\n")
        kept += b"later\n"
        assert everything(spool) == kept
    assert path.stat().st_size < COMPACT_BYTES
    with opened(path) as spool:
        assert (spool.base, everything(spool)) == (COMPACT_BYTES // 1000 * 1000 + 1000, kept)


def test_after_a_rename_whose_directory_sync_failed_the_new_file_is_the_one_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool"
    with opened(path) as spool:
        spool.anchor(0)
        spool.tidy()
        fill(spool, COMPACT_BYTES + 1000)
        spool.discard(spool.end)

        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        spool.tidy()
        spool.append(b"after\n")
        monkeypatch.undo()
        assert spool.untidy
        spool.tidy()
        assert not spool.untidy
    with opened(path) as spool:
        assert everything(spool) == b"after\n"


# --- files that are no spool


def test_what_is_no_spool_is_one_clear_error(tmp_path: Path) -> None:
    """And nothing stays open or locked."""
    folder, fifo, link = tmp_path / "folder", tmp_path / "fifo", tmp_path / "link"
    folder.mkdir()
    os.mkfifo(fifo)
    (tmp_path / "target").write_bytes(b"")
    link.symlink_to(tmp_path / "target")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"x" * 300)
    before = descriptors()
    for path in (folder, fifo, link, tmp_path / "empty", tmp_path / "text", tmp_path / "no" / "directory"):
        with pytest.raises(CheckpointError, match=str(path)) as caught:
            Spool(str(path), "n", NEWLINE)
        assert "\n" not in str(caught.value)
    assert descriptors() == before
    assert (tmp_path / "text").read_bytes() == b"x" * 300


def test_a_forked_child_neither_writes_the_spool_nor_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), "n", NEWLINE)
    spool.append(b"parent\n")
    report, told = os.pipe()
    resume, release = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            spool.append(b"child\n")
        except CheckpointError:
            os.write(told, b"refused")
        os.close(told)
        os.close(release)
        os.read(resume, 1)
        os._exit(0)
    os.close(told)
    assert os.read(report, 100) == b"refused"
    spool.close()
    with opened(path) as again:
        assert everything(again) == b"parent\n"
    for fd in (report, resume, release):
        os.close(fd)
    os.waitpid(child, 0)


# --- format 1


def version_1(framing: str, base: int | None, messages: bytes) -> bytes:
    place = b"-" * 20 if base is None else b"%020d" % base
    line = b"tailsrv-spool 1 n %s %s" % (framing.encode(), place)
    return line + b" %08x\n" % zlib.crc32(line) + messages


@pytest.mark.parametrize("base", [None, 700])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_spool_of_format_1_becomes_one_of_format_2(tmp_path: Path, framing: str, base: int | None) -> None:
    path = tmp_path / "spool"
    codec = make_framing(framing, 4 << 20)
    sizes = [3] * 100 + [60_000 if framing == "u16be" else 2 << 20] + [9] * 100
    messages = b"".join(codec.wrap(b"x" * size) for size in sizes)
    path.write_bytes(version_1(framing, base, messages))
    with opened(path, framing) as spool:
        assert (spool.base, everything(spool)) == (base, messages)
    assert path.read_bytes().startswith(b"tailsrv-spool 2 n ")
    with opened(path, framing) as spool:
        assert (spool.base, everything(spool)) == (base, messages)


def test_the_torn_end_of_format_1_is_dropped_and_the_file_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool"
    content = version_1("u16be", None, b"\0\1a\0\2b")
    path.write_bytes(content)
    with opened(path, "u16be") as spool:
        assert everything(spool) == b"\0\1a"
    assert (tmp_path / "spool.v1").read_bytes() == content
    assert "cut off by a crash" in caplog.text


def test_a_length_that_no_message_has_is_an_error_in_format_1(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    messages = b"".join(make_framing("u32be").wrap(b"x" * 50) for _ in range(200))
    damaged = bytearray(version_1("u32be", 5, messages))
    at = len(damaged) - len(messages) + 20 * 54
    damaged[at] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"damaged at byte {at}"):
        Spool(str(path), "n", make_framing("u32be"))
    assert path.read_bytes() == damaged
    assert sorted(os.listdir(tmp_path)) == ["spool", "spool.lock"]
