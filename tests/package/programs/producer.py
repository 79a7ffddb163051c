"""Sends the lines of its standard input, and ends when all are committed."""

import sys

from tailsrv_client import Producer, TailsrvError


def main(address: str, name: str) -> int:
    """Send every line; return the exit code."""
    try:
        with Producer(address, name=name) as producer:
            for line in sys.stdin.buffer:
                producer.send(line.rstrip(b"\n"))
    except TailsrvError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
