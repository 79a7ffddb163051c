"""`make demo`: a stream from nothing, with everything that happens to it shown.

Starts `tailsrv-up` on a new file, two producers that send lines about this machine, a consumer that follows, and asks
the indexer where a message starts. Then the stream stays up for you; with DEMO_SECONDS set, it ends after that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

import click
import msgspec

from tailsrv_formats.addresses import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BASE_PORT: Final = 4321
SHOW_SECONDS: Final = 8.0
"""How long the producers talk when nobody says otherwise."""

PATIENCE_SECONDS: Final = 30.0
"""How much longer the demo waits for what it wants to show."""

INDEXED_MESSAGE: Final = 3

Lanes = dict[str, Address]


def main() -> None:
    """Run the demo; the exit code is 0 when all of it worked."""
    limit = os.environ.get("DEMO_SECONDS")
    try:
        seconds = float(limit) if limit else None
    except ValueError:
        sys.exit(f"DEMO_SECONDS={limit!r} is no number of seconds")
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(_demo(seconds)))


async def _demo(seconds: float | None) -> int:
    with tempfile.TemporaryDirectory(prefix="tailsrv-demo-") as folder:
        file = os.path.join(folder, "events.log")
        base_port = BASE_PORT if _free(BASE_PORT) else 0
        if not base_port:
            _say("demo", f"ports {BASE_PORT} to {BASE_PORT + 3} are taken; using free ones")
        read_end, write_end = os.pipe()
        up = await asyncio.create_subprocess_exec(
            "tailsrv-up",
            file,
            *("--base-port", str(base_port), "--ready-fd", str(write_end), "--log-level", "warning"),
            pass_fds=(write_end,),
            process_group=0,  # Ctrl-C comes here first
        )
        os.close(write_end)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, lambda: up.send_signal(signal.SIGTERM))
        with os.fdopen(read_end, "rb") as ready:
            line = await asyncio.to_thread(ready.readline)
        worked = False
        if line:
            names = ("broadcast", "collate", "acknowledged", "index")
            found = map(parse_address, msgspec.json.decode(line)["addresses"])
            lanes = dict(zip(names, found, strict=True))
            if not _netcat_is_here():
                for text in _without_netcat(lanes):
                    _say("demo", text)
            worked = await _show(lanes, seconds or SHOW_SECONDS, up.wait())
            if seconds is None and up.returncode is None:
                _say("demo", "the stream stays up: try the commands above in another terminal. Ctrl-C ends it.")
            elif up.returncode is None:
                up.send_signal(signal.SIGTERM)
        code = await up.wait()
        return code if worked else code or 1


async def _show(lanes: Lanes, seconds: float, ended: Awaitable[int]) -> bool:
    """Let things happen for a while, or until the daemons have ended; whether all went well."""
    talking = [
        asyncio.create_task(_consume(lanes)),
        asyncio.create_task(_produce("load", 1.0, _load, lanes)),
        asyncio.create_task(_produce("memory", 0.7, _memory, lanes)),
    ]
    asking = asyncio.create_task(_look_up(lanes))
    end = asyncio.ensure_future(ended)
    await asyncio.wait([end], timeout=seconds)
    # A busy machine may need longer until the index has an answer.
    await asyncio.wait([end, asking], timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    worked = asking.done() or end.done()
    for task in (asking, *talking):
        task.cancel()
    for outcome in await asyncio.gather(asking, *talking, return_exceptions=True):
        if isinstance(outcome, Exception) and not end.done():  # a stream that somebody ends breaks connections
            _say("demo", f"failed: {outcome}")
            worked = False
    return worked


async def _produce(name: str, pause: float, measure: Callable[[], str], lanes: Lanes) -> None:
    _, writer = await _connect(lanes["collate"])
    while True:
        line = f"{time.strftime('%H:%M:%S')} {name}: {measure()}"
        _say(f"producer {name}", line)
        writer.write(f"{line}\n".encode())
        await writer.drain()
        await asyncio.sleep(pause)


async def _consume(lanes: Lanes) -> None:
    reader, writer = await _connect(lanes["broadcast"])
    writer.write(b"0\n")
    while line := await reader.readline():
        _say("consumer", line.decode().rstrip("\n"))


async def _look_up(lanes: Lanes) -> None:
    """Ask until the message is there, then read from it: what `nc` does with the two commands that are printed."""
    reader, writer = await _connect(lanes["index"])
    answer = b"error"
    while answer.startswith(b"error"):
        await asyncio.sleep(0.2)
        writer.write(b"%d\n" % INDEXED_MESSAGE)
        answer = await reader.readline()
        if not answer:
            return
    writer.close()
    offset = int(answer)
    _say("index", f"message {INDEXED_MESSAGE} starts at byte {offset}")
    reader, writer = await _connect(lanes["broadcast"])
    writer.write(b"%d\n" % offset)
    line = await reader.readline()
    _say("index", f"read from there: {line.decode().rstrip()}")
    writer.close()


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("localhost", address.port)


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f} on {os.cpu_count()} processors"


def _memory() -> str:
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(" ".join(line.split()[1:]) for line in lines if line.startswith("MemAvailable")) + " available"


def _netcat_is_here() -> bool:
    """Whether there is an nc that knows `-N`, as the commands of `tailsrv-up` need it; other flavours do not."""
    try:
        shown = subprocess.run(["nc", "-h"], check=False, capture_output=True, text=True, errors="replace", timeout=5)  # noqa: S607 - whichever is found is the one that is asked about
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "OpenBSD" in shown.stdout + shown.stderr


def _without_netcat(lanes: Lanes) -> list[str]:
    """What to say where there is none: how to install it, and our own commands that do the same."""
    bin_folder = os.path.relpath(os.path.dirname(sys.executable))
    broadcast, acknowledged, index = (
        f"localhost:{lanes[name].port}" for name in ("broadcast", "acknowledged", "index")
    )
    return [
        "the commands above need OpenBSD's nc, which is not here: apt-get install netcat-openbsd. Without it:",
        f"  {bin_folder}/tailsrv-cat {broadcast}",
        f"  echo hello | {bin_folder}/tailsrv-put {acknowledged} --name me",
        f"  {bin_folder}/tailsrv-cat {broadcast} --index {index} --from message:3",
    ]


def _free(base_port: int) -> bool:
    """Whether the ports that `tailsrv-up` takes by default are to be had."""
    for port in range(base_port, base_port + 4):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


COLOURS: Final = {"consumer": "green", "index": "magenta", "demo": "yellow"}


def _say(who: str, what: str) -> None:
    click.echo(f"{click.style(f'{who:>16}', fg=COLOURS.get(who, 'blue'))} │ {what}")


if __name__ == "__main__":
    main()
