"""``python -m indexer`` is `tailsrv-index`."""

from indexer.cli import main

main()
