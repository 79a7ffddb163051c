"""``python -m compose.up``."""

from compose.up.cli import main

main()
