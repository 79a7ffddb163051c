"""What a client can't work through. What a single connection suffers is no error: the clients connect again."""

from __future__ import annotations

from tailsrv_formats.errors import TailsrvError
from tailsrv_formats.position import CHECKED_BYTES


class WrongPortError(TailsrvError):
    """What answers at an address is not the server that the client is for; says what it looks like, and what to try."""


class UnknownHostError(TailsrvError):
    """None of the addresses has a host that can be resolved, and none ever had."""


class GaveUpError(TailsrvError):
    """Nothing worked for as long as the caller allowed (`Waits.outage`, ``--timeout``)."""


class StreamDiverged(TailsrvError):  # noqa: N818 - the field's word for it; it is an error in every use
    """The server's stream is not the one that was read: the bytes before the position differ."""

    def __init__(self, offset: int) -> None:
        super().__init__(
            f"another stream: the {min(offset, CHECKED_BYTES)} bytes before byte {offset} are not those that were"
            " read; check the address, or start anew without the old position"
        )
        self.offset = offset


class CheckpointError(TailsrvError):
    """A checkpoint or spool file that can't be used: held by another process, or not what it should be."""


class IndexFailed(TailsrvError):  # noqa: N818 - what happened, not a kind of mistake
    """The indexer answered ``error: …``; the text is its own."""

    @property
    def passes(self) -> bool:
        """Whether the same question will have an answer later: the index is being built or rebuilt."""
        return "ask again" in str(self)


class ProducerDiverged(TailsrvError):  # noqa: N818 - named as StreamDiverged is
    """The collator's ACKED is no place in what this producer has sent: it can't go on without a gap or a repetition."""


class ProducerFull(TailsrvError, TimeoutError):  # noqa: N818 - as in queue.Full
    """There was no room for the message within the time given: what is in flight has reached its bound."""


class ProducerRefused(TailsrvError):  # noqa: N818 - what happened, not a kind of mistake
    """The collator ended the producer's stream with ``error: …``; the text is its own."""
