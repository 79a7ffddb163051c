"""What can go wrong at the level of messages. What a connection suffers is no error: the clients connect again."""

from __future__ import annotations

from tailsrv.client import ClientError, GaveUpError, StreamDiverged, UnknownHostError, WrongPortError

__all__ = [
    "CheckpointError",
    "ClientError",
    "GaveUpError",
    "IndexFailed",
    "ProducerDiverged",
    "ProducerFull",
    "ProducerRefused",
    "StreamDiverged",
    "UnknownHostError",
    "WrongPortError",
]


class CheckpointError(ClientError):
    """A checkpoint or spool file that can't be used: held by another process, or not what it should be."""


class IndexFailed(ClientError):  # noqa: N818 - what happened, not a kind of mistake
    """The indexer answered ``error: …``; the text is its own."""

    @property
    def passes(self) -> bool:
        """Whether the same question will have an answer later: the index is being built or rebuilt."""
        return "ask again" in str(self)


class ProducerDiverged(ClientError):  # noqa: N818 - named as StreamDiverged is
    """The collator's ACKED is no place in what this producer has sent: it can't go on without a gap or a repetition."""


class ProducerFull(ClientError, TimeoutError):  # noqa: N818 - as in queue.Full
    """There was no room for the message within the time given: what is in flight has reached its bound."""


class ProducerRefused(ClientError):  # noqa: N818 - what happened, not a kind of mistake
    """The collator ended the producer's stream with ``error: …``; the text is its own."""
