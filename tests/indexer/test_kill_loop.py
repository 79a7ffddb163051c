"""kill -9 at any moment: the next start's answers are all right.

KILL_LOOP_KILLS=200 for as many kills; the suite has a few.
"""

from __future__ import annotations

import os
import random
import select
import signal
from typing import TYPE_CHECKING

import pytest

from indexer.verifier import verify
from tests.support.indexers import Asker, index
from tests.support.naive_index import Truth, lines

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("KILL_LOOP_KILLS", "10"))


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize("framing", ["newline", "varint"])
def test_killed_while_building_and_following_the_next_start_answers_right(tmp_path: Path, framing: str) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    path = tmp_path / "stream"
    block = Truth(framing, lines(20000, width=60))
    copies, blocks = 40, 0  # enough to be built by workers
    with path.open("ab", buffering=0) as stream:
        for _ in range(copies):
            stream.write(block.content)
            blocks += 1
        for kill in range(KILLS // 2):
            rebuild = ("--rebuild",) if kill % 3 == 0 else ()
            with index(path, "--framing", framing, *rebuild) as daemon:
                for _ in range(rng.randrange(4)):
                    cut = rng.randrange(block.end)
                    stream.write(block.content[:cut])
                    stream.write(block.content[cut:])
                    blocks += 1
                # A moment at random, of which nothing tells: the kill has to come at any.
                select.select([], [], [], rng.random() * 0.15)
                daemon.signal(signal.SIGKILL)
                daemon.wait()
            assert verify(str(path)) == [], f"seed {seed}, kill {kill}"
            with index(path, "--framing", framing) as daemon, Asker(daemon) as asker:
                assert asker.count() == blocks * block.count, f"seed {seed}, kill {kill}"
                numbers = [rng.randrange(blocks * block.count) for _ in range(300)]
                asker.sock.sendall(b"".join(b"%d\n" % number for number in numbers))
                for number in numbers:
                    whole, rest = divmod(number, block.count)
                    assert asker.next() == str(whole * block.end + block.offsets[rest]), f"seed {seed}, kill {kill}"
                if kill % 2:
                    daemon.signal(signal.SIGKILL)
                    daemon.wait()
                else:
                    assert daemon.stop() == 0
