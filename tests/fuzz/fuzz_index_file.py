"""Fuzz target: an index that somebody else wrote, before an indexer opened it or while it runs.

Invariant: whatever bytes the index file holds, it is set aside, or repaired, or used; and then every look-up answers
what a naive reading of the stream does. Never a wrong answer, never an exception, and an error only once.

The input is a list of edits to a right index: two bytes say where, one what; so that most of it stays plausible.

    python -m tests.fuzz.fuzz_index_file [atheris' options]
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Self

from indexer.errors import CorruptIndexError
from indexer.follower import Follower
from indexer.identity import identified
from indexer.options import Options
from tailsrv_formats.framing import make_framing
from tailsrv_formats.index_file import Header, encode_entries
from tailsrv_formats.index_query import Query
from tailsrv_runtime.reactor import Reactor
from tests.fuzz.campaign import run
from tests.support.logs import RecordedLog
from tests.support.naive_index import Truth, lines

if TYPE_CHECKING:
    from tailsrv_formats.index_query import Answer

INTERVAL = 64
TRUTH = Truth("newline", lines(120))


def read(offset: int, count: int) -> bytes:
    """The stream."""
    return TRUTH.content[offset : offset + count]


def right_index() -> bytes:
    """What the index of the stream holds when nobody has touched it."""
    header = identified(Header("newline", INTERVAL, 1), read)
    raw = TRUTH.entries(INTERVAL, header.seed())
    stamps = range(len(raw) // 3)
    return header.encode() + b"".join(
        encode_entries(raw[3 * stamp : 3 * stamp + 3], 1000 + stamp, exact=True) for stamp in stamps
    )


RIGHT = right_index()


def edited(data: bytes) -> bytes:
    """The right index with some bytes changed, and perhaps cut or continued."""
    content = bytearray(RIGHT)
    for at in range(0, len(data) - 3, 3):
        content[int.from_bytes(data[at : at + 2], "big") % len(content)] ^= data[at + 2]
    if len(data) % 3 == 1:
        del content[len(content) * data[-1] // 255 :]
    elif len(data) % 3 == 2:
        content += data
    return bytes(content)


def _nothing(*_: object) -> None:
    pass


class Indexer:
    """An indexer without sockets, of a stream in `directory`."""

    def __init__(self, directory: str, truth: Truth = TRUTH, index: bytes | None = RIGHT) -> None:
        """`truth`: the stream. `index`: what its file holds; None leaves it as it is."""
        self.path = os.path.join(directory, "stream")
        with open(self.path, "wb") as file:
            file.write(truth.content)
        self.index_path = f"{self.path}.index"
        if index is not None:
            with open(self.index_path, "wb") as file:
                file.write(index)
        self.log = RecordedLog()
        self._reactor = Reactor()
        options = Options(file=self.path, index=self.index_path, framing=truth.framing, interval_bytes=INTERVAL)
        self.follower = Follower(
            self._reactor, options, make_framing(truth.framing), self.log, on_stale=_nothing, on_progress=_nothing
        )
        self._fd = os.open(self.path, os.O_RDONLY)

    def attach(self, end: int = TRUTH.end) -> Self:
        """Let it see the stream, as far as it is committed."""
        self.follower.attach(self._fd, end)
        return self

    def ask(self, query: Query) -> Answer | None:
        """What the daemon answers; None where it asks for patience."""
        follower = self.follower
        try:
            return follower.answer(query)
        except CorruptIndexError as error:
            follower.repair(error)
        try:
            return follower.answer(query)
        except CorruptIndexError as error:
            follower.cut(error)
        return None

    def assert_answers(self, truth: Truth = TRUTH) -> int:
        """Compare all answers with those of a naive reading; how many there were at the first try."""
        answered = 0
        for number in range(truth.count + 1):
            for query in (Query("number", number, True), Query("offset", truth.offsets[number], True)):
                answer = self.ask(query)
                answered += answer is not None
                answer = answer or self.ask(query)
                assert answer is not None, query
                assert (answer.number, answer.offset) == (number, truth.offsets[number])
                assert answer.length == (len(truth.messages[number]) if number < truth.count else None)
                assert (answer.count, answer.end) == (truth.count, truth.end)
        return answered

    def overwrite(self, content: bytes) -> None:
        """Put this into the index under it."""
        with open(self.index_path, "r+b") as file:
            file.write(content)
            file.truncate()

    def close(self) -> None:
        self.follower.close()
        self._reactor.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def assert_input(data: bytes, directory: str) -> int:
    """Check the invariant for these bytes as an index. Returns how many answers there were."""
    with Indexer(directory, index=data) as indexer:
        answered = indexer.attach().assert_answers()
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    with Indexer(directory) as indexer:
        indexer.attach().overwrite(data)
        indexer.assert_answers()
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    return answered


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        run(lambda data: assert_input(data, directory), lambda data: assert_input(edited(data), directory))
