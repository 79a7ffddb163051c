"""The names of the acknowledged port over several connections."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.support.collators import Producer, collate, wait_committed

if TYPE_CHECKING:
    from pathlib import Path


def test_a_rejected_connection_that_closes_late_does_not_take_its_successors_progress_away(tmp_path: Path) -> None:
    """It would get ACKED 0, and send everything twice."""
    path = tmp_path / "stream"
    with collate(path, "--max-message-bytes", "100") as collator:
        rejected = Producer(collator, "w")
        assert rejected.told() == (0, 0)
        rejected.send(b"x" * 200)
        assert rejected.rest().startswith(b"error: ")
        silent = Producer(collator, "w")
        silent.sock.shutdown(socket.SHUT_WR)
        assert silent.rest() == b"0 0\n0 0\n"
        successor = Producer(collator, "w")
        assert successor.told() == (0, 0)
        successor.send(b"hello\n")
        assert successor.until(6)[-1] == (6, 6)
        successor.sock.shutdown(socket.SHUT_WR)
        assert successor.rest() == b"6 6\n"
        successor.close()
        rejected.close()
        wait_committed(path, 6)
        for _ in range(3):  # one of them comes after the collator has noticed the close
            assert Producer(collator, "w").told() == (6, 6)
