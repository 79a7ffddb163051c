"""Prints every message of a stream with its place, and resumes where it ended."""

import sys

from tailsrv_client import Consumer, TailsrvError


def main(addresses: str, checkpoint: str) -> int:
    """Print the messages that exist; return the exit code."""
    try:
        with Consumer(addresses, until="now", checkpoint=checkpoint) as consumer:
            for message in consumer:
                print(message.offset, message.end, message.payload.decode())  # noqa: T201 - the program's output
    except TailsrvError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
