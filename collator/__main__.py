"""`python -m collator` is `tailsrv-collate`."""

from collator.cli import main

main()
