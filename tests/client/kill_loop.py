"""Kill loop, end to end.

Log files that grow and are rotated, their shippers, collator, broadcaster, indexer and a checkpointing consumer, each
killed with SIGKILL at random moments. The consumer's output has to be every line once, in each writer's order.

``python -m tests.client.kill_loop --kills 300`` is the long form.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tailsrv_client import Index
from tests.support.streams import PUT, StreamUnderTest
from tests.support.waits import wait_until

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

WRITERS: Final = 4
DAEMONS: Final = ("tailsrv-collate", "tailsrv", "tailsrv-index")

# Exactly once into a file: its length is the position, so what came after the checkpoint is cut off and read again.
CONSUMER: Final = """
import sys
from tailsrv_client import Consumer
broadcaster, checkpoint, path = sys.argv[1:]
with Consumer(broadcaster, checkpoint=checkpoint, checkpoint_seconds=0.05) as consumer, open(path, "ab") as output:
    output.truncate(consumer.position.offset)
    for batch in consumer.batches():
        output.writelines(message.payload + b"\\n" for message in batch)
        output.flush()
"""


class Writer(threading.Thread):
    """Appends numbered lines to a file, in pieces, and rotates it now and then."""

    def __init__(self, log: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.log, self.written = log, 0
        self._rng = random.Random(seed)
        self._ended = threading.Event()

    def line(self, number: int) -> bytes:
        """The line with this number."""
        return f"{self.log.name} {number:08d} {'x' * (number * 7919 % 120)}\n".encode()

    def run(self) -> None:
        rotations = 0
        while not self._ended.is_set():
            with self.log.open("ab", buffering=0) as file:
                for _ in range(self._rng.randint(5, 150)):
                    self._write(file)
                    if self._ended.wait(self._rng.expovariate(200)):
                        break
                self.log.rename(f"{self.log}.{rotations:06d}")
                rotations += 1
                if self._rng.random() < 0.5:
                    self._write(file)  # a writer that has not noticed yet

    def _write(self, file: io.FileIO) -> None:
        line = self.line(self.written)
        cut = self._rng.randint(0, len(line))
        file.write(line[:cut])
        file.write(line[cut:])
        self.written += 1

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self.join()


def difference(found: list[bytes], wanted: list[bytes]) -> str:
    """What is wrong, for who has to find out why."""
    missing = sorted(set(wanted) - set(found))
    twice = sorted(line for line, count in Counter(found).items() if count > 1)
    strange = sorted(set(found) - set(wanted))
    numbers = [int(line.split()[1]) for line in found if line.count(b" ") >= 2]
    steps = [(a, b) for a, b in itertools.pairwise(numbers) if b != a + 1]
    return (
        f"{len(missing)} missing {missing[:2]}, {len(twice)} twice {twice[:2]}, strange {strange[:2]}, "
        f"jumps {steps[:5]}"
    )


class KillLoop:
    """Everything that can be killed, by name."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.output = folder / "output"
        self._checkpoint = folder / "checkpoint"
        self.stream = StreamUnderTest(folder / "stream.log")
        self.writers = [Writer(folder / f"app{number}.log", seed + number) for number in range(WRITERS)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.names = (*DAEMONS, "consumer", *(writer.log.name for writer in self.writers))
        self.addresses: dict[str, str] = {}

    def start(self, name: str) -> None:
        """Start one of `names`; a daemon at its address."""
        if name in DAEMONS:
            with contextlib.suppress(ChildProcessError):  # somebody else's connection has its port for a moment
                self.addresses[name] = self.stream.daemon(name).addresses[-1]
            return
        command = (
            [sys.executable, "-c", CONSUMER, self.addresses["tailsrv"], str(self._checkpoint), str(self.output)]
            if name == "consumer"
            else [*PUT, self.addresses["tailsrv-collate"], "--follow", str(self.output.parent / name)]
        )
        with (self.output.parent / "errors").open("ab") as errors:
            self._processes[name] = subprocess.Popen(command, stderr=errors)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        if name in DAEMONS:
            with contextlib.suppress(KeyError):  # it did not come up the last time
                self.stream.kill(name)
        else:
            process = self._processes.pop(name)
            assert process.poll() is None, f"{name} ended by itself with {process.returncode}"
            process.kill()
            process.wait()

    def run(self, kills: int, pause: float) -> None:
        """Kill processes at random and start them again, `kills` times, with pauses of up to `pause` seconds."""
        for name in self.names:
            self.start(name)
        for writer in self.writers:
            writer.start()
        for _ in range(kills):
            time.sleep(self.rng.uniform(0, pause))
            victims = self.rng.sample(self.names, self.rng.choice((1, 1, 1, 2)))
            for name in victims:
                self.kill(name)
            for name in victims:
                self.start(name)
        wait_until(self._all_daemons_run)

    def _all_daemons_run(self) -> bool:
        for name in DAEMONS:
            self.start(name)
        return self.stream.running >= set(DAEMONS)

    def finish(self) -> int:
        """End the writers, wait until all they wrote has been consumed, and check it. Returns the number of lines."""
        for writer in self.writers:
            writer.stop()
        size = sum(len(writer.line(number)) for writer in self.writers for number in range(writer.written))
        wait_until(lambda: self.output.exists() and self.output.stat().st_size >= size, f"{size} bytes of output")
        found = self.output.read_bytes()
        for writer in self.writers:
            name = writer.log.name.encode()
            own = [line for line in found.splitlines(keepends=True) if line.startswith(name + b" ")]
            wanted = [writer.line(number) for number in range(writer.written)]
            assert own == wanted, f"{writer.log.name}: {difference(own, wanted)}"
        assert len(found) == size
        assert self.stream.content() == found
        self._check_index(found)
        return found.count(b"\n")

    def _check_index(self, found: bytes) -> None:
        starts = [0]
        for line in found.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        with Index(self.addresses["tailsrv-index"]) as index:
            wait_until(lambda: index.count() == len(starts) - 1, "the index to be complete")
            assert list(index.offsets_of(range(len(starts)))) == starts

    def close(self) -> None:
        """End everything."""
        for writer in self.writers:
            if writer.is_alive():
                writer.stop()
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.stream.__exit__()


@contextlib.contextmanager
def kill_loop(folder: Path, seed: int) -> Iterator[KillLoop]:
    """A kill loop that is closed at the end of the block."""
    loop = KillLoop(folder, seed)
    try:
        yield loop
    finally:
        loop.close()


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--pause", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, kill_loop(Path(folder), options.seed) as loop:
        loop.run(options.kills, options.pause)
        lines = loop.finish()
    print(f"{options.kills} kills, {lines} lines, each once and in order; {time.monotonic() - begin:.0f} s")  # noqa: T201 - its result


if __name__ == "__main__":
    main()
