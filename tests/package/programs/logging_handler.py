"""Logs to a stream through Python's logging."""

import logging
import sys

from tailsrv_client import TailsrvHandler


def main(address: str) -> None:
    """Log one line; closing the handler delivers it."""
    handler = TailsrvHandler(address)
    logger = logging.getLogger("program")
    logger.addHandler(handler)
    logger.warning("disk %s is %d %% full", "sda", 93)
    handler.close()


if __name__ == "__main__":
    main(sys.argv[1])
