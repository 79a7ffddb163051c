"""Errors that end a client's work. A lost connection is not one of them: the clients reconnect."""

from __future__ import annotations

from tailsrv_formats.errors import TailsrvError
from tailsrv_formats.position import CHECKED_BYTES


class WrongPortError(TailsrvError):
    """Another kind of server answers at the address; the message names the kind and the expected port."""


class UnknownHostError(TailsrvError):
    """No host name of the addresses could be resolved at the first try."""


class GaveUpError(TailsrvError):
    """No server worked for the time that the caller allowed (`Timeouts.outage`, ``--timeout``)."""


class StreamDiverged(TailsrvError):  # noqa: N818 - the field's word for it; it is an error in every use
    """The server's stream is not the one that was read: the bytes before the position differ."""

    def __init__(self, offset: int) -> None:
        super().__init__(
            f"stream diverged: the {min(offset, CHECKED_BYTES)} bytes before byte {offset} differ from those that were"
            " read; check the address, or remove the checkpoint to read this stream from its start"
        )
        self.offset = offset


class CheckpointError(TailsrvError):
    """A checkpoint or spool that cannot be used: another process uses it, or its content is invalid."""


class IndexFailed(TailsrvError):  # noqa: N818 - what happened, not a kind of mistake
    """The indexer answered ``error: …``; the text is its own."""

    @property
    def passes(self) -> bool:
        """Whether the same question will have an answer later: the index is being built or rebuilt."""
        return "ask again" in str(self)


class ProducerDiverged(TailsrvError):  # noqa: N818 - named as StreamDiverged is
    """The collator's ACKED is outside this producer's bytes: it would lose or repeat messages."""


class ProducerFull(TailsrvError, TimeoutError):  # noqa: N818 - as in queue.Full
    """The unacknowledged bytes stayed at `max_in_flight_bytes` for `timeout` seconds: the message was not accepted."""


class ProducerRefused(TailsrvError):  # noqa: N818 - what happened, not a kind of mistake
    """The collator ended the producer's stream with ``error: …``; the text is its own."""
