"""Answers the questions of a plan in dialogues with the broadcasters and the indexer. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tailsrv_client.errors import IndexFailed
from tailsrv_client.protocol.plan import END
from tailsrv_client.protocol.requests import ask_until_answered
from tailsrv_client.protocol.stream_end import find_end
from tailsrv_formats.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeVar

    from tailsrv_client.protocol.dialogue import Dialogue, OnEvent
    from tailsrv_client.protocol.plan import Question
    from tailsrv_client.protocol.requests import Entry
    from tailsrv_client.protocol.servers import Rotation

    Answer = TypeVar("Answer")

SECONDS: Final = 10.0
"""How long the indexer may take for a request."""


def answer(
    questions: Generator[Question, int | Entry, Answer], broadcast: Rotation, index: Rotation | None, on_event: OnEvent
) -> Dialogue[Answer]:
    """Ask the broadcasters and the indexer, until `questions` has its result.

    Each is asked until it answers. Raises `UsageError` where an indexer is needed and none is named, and
    `IndexFailed` for what the indexer refuses.
    """
    try:
        question = next(questions)
        while True:
            try:
                if question == END:
                    reply: int | Entry = yield from find_end(broadcast, on_event)
                else:
                    rotation, request = _for_indexer(question, index)
                    reply = yield from ask_until_answered(rotation, request, SECONDS, on_event)
            except IndexFailed as error:
                question = questions.throw(error)
            else:
                question = questions.send(reply)
    except StopIteration as stop:
        found: Answer = stop.value
        return found


def _for_indexer(question: Question, index: Rotation | None) -> tuple[Rotation, dict[str, Any]]:
    """A question that is for the indexer. Raises `UsageError` when there is none."""
    if index is None or isinstance(question, str):
        asked = (
            question if isinstance(question, str) else " ".join(f"{kind} {value}" for kind, value in question.items())
        )
        raise UsageError(f"{asked} needs an indexer; name one with index=ADDR or --index ADDR")
    return index, question
