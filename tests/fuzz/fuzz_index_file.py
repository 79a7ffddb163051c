"""Fuzz target: an index that somebody else wrote.

Invariant: whatever bytes the index file holds, it is set aside, or cut, or used; and then every look-up answers what a
naive reading of the stream does, or says that index and stream disagree. Never a wrong answer, never anything else.

The input is a list of edits to a right index: two bytes say where, one what; so that most of it stays plausible.

    python -m tests.fuzz.fuzz_index_file [atheris' options]
"""

from __future__ import annotations

import os
import tempfile

from collator.framing import make_framing
from indexer.file import IndexFile
from indexer.format import Header, MismatchError, encode_entries
from indexer.identity import disagreement, identify
from indexer.lookup import Arrivals, Lookup
from indexer.query import Query
from indexer.walker import Walker
from tests.fuzz.campaign import run
from tests.indexer.support import Truth, lines

INTERVAL = 64
TRUTH = Truth("newline", lines(120))


def read(offset: int, count: int) -> bytes:
    """The stream."""
    return TRUTH.content[offset : offset + count]


def right_index() -> bytes:
    """What the index of the stream holds when nobody has touched it."""
    header = identify(Header("newline", INTERVAL, 1), read)
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


def one_input(data: bytes, directory: str) -> int:
    """Check the invariant for these bytes as an index. Returns how many answers there were."""
    path = os.path.join(directory, "index")
    with open(path, "wb") as file:
        file.write(data)
    index = IndexFile(path)
    try:
        return _ask_all(index)
    finally:
        index.close()


def _ask_all(index: IndexFile) -> int:
    if not index.load():
        return 0
    header = index.header
    assert header is not None
    if (header.framing, header.interval) != ("newline", INTERVAL) or disagreement(index, read, TRUTH.end) is not None:
        return 0
    framing, last = make_framing("newline"), index.entry(index.count - 1)
    arrivals = Arrivals()
    arrivals.add(last)
    lookup = Lookup(framing, index, arrivals, header.seed(), read)
    try:
        lookup.check(index.count - 2)
    except MismatchError:
        return 0
    walker = Walker(framing, INTERVAL, header.seed(), last.offset, last.number)
    raw = walker.feed(read(walker.position, TRUTH.end))
    index.append(raw, last.time, exact=False)
    arrivals.add(last._replace(number=walker.number, offset=walker.boundary))
    assert (walker.number, walker.boundary) == (TRUTH.count, TRUTH.end)
    answered = 0
    for number in range(TRUTH.count + 1):
        for query in (Query("number", number, True), Query("offset", TRUTH.offsets[number], True)):
            try:
                answer = lookup.answer(query)
            except MismatchError:
                continue
            answered += 1
            assert (answer.number, answer.offset) == (number, TRUTH.offsets[number])
            assert answer.length == (len(TRUTH.messages[number]) if number < TRUTH.count else None)
    return answered


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        run(lambda data: one_input(data, directory), lambda data: one_input(edited(data), directory))
