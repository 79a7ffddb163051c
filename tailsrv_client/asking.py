"""Answers to what a plan asks, on blocking sockets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tailsrv.kit.errors import UsageError
from tailsrv_client.ending import probe_end
from tailsrv_client.errors import IndexFailed
from tailsrv_client.index import Index
from tailsrv_client.planning import END

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeVar

    from tailsrv.client import Rotation
    from tailsrv.kit.addresses import Address
    from tailsrv_client.planning import Question
    from tailsrv_client.queries import Entry

    Answer = TypeVar("Answer")


def answer(
    questions: Generator[Question, int | Entry, Answer],
    index_addresses: tuple[Address, ...] | None,
    rotation: Rotation,
    tell: Callable[[str], None],
) -> Answer:
    """Ask the broadcasters of `rotation` and the indexer, until `questions` has its result.

    Broadcasters are asked until one answers. Raises `UsageError` where an indexer is needed and none is named,
    `IndexFailed` and `OSError` of the indexer.
    """
    with Index(index_addresses or ("127.0.0.1:0",)) as index:  # connects when it is asked, not before
        try:
            question = next(questions)
            while True:
                try:
                    reply = (
                        find_end(rotation, tell) if question == END else index.ask(request(question, index_addresses))
                    )
                except IndexFailed as error:
                    question = questions.throw(error)
                else:
                    question = questions.send(reply)
        except StopIteration as stop:
            found: Answer = stop.value
            return found


def request(question: Question, index_addresses: tuple[Address, ...] | None) -> dict[str, Any]:
    """A question that is for the indexer. Raises `UsageError` when there is none."""
    if index_addresses is None or isinstance(question, str):
        asked = (
            question if isinstance(question, str) else " ".join(f"{kind} {value}" for kind, value in question.items())
        )
        raise UsageError(f"to ask for {asked} takes an indexer: name one (index=ADDR, --index ADDR)")
    return question


def find_end(rotation: Rotation, tell: Callable[[str], None]) -> int:
    """The end of the stream, from the first address that says it."""
    while True:
        try:
            end = probe_end(rotation.address)
        except OSError as error:
            address = rotation.address
            pause = rotation.failed()
            tell(f"{address}: cannot find the end ({error.strerror or error}); next: {rotation.address}")
            time.sleep(pause)
        else:
            rotation.worked()
            return end
